"""The formats by name, and what they share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxattn.data.augment import NORMALISATIONS
from jaxattn.registry import Registry
from jaxattn.run import Run

#: Functions that write a run into a folder.
FORMATS: Registry[Callable[[Run, Path], None]] = Registry("--format")


_RESAMPLING = {
    "antialias": "antialiased bilinear",
    "nearest": "nearest neighbour",
    "bilinear": "bilinear without antialiasing",
}


def preprocessing(run: Run) -> dict[str, Any]:
    """What happens to an image before the network sees it, for JSON.

    Returns:
        ``image_size``, (height, width) to resize to; ``centre_crop`` and ``prepared_size``, see
        `images.decode_image`; ``crops``, the config's; ``normalisation``, its name, and ``affine``
        (see `affine`).
    """
    size, centre, prepared_size, resize = run.geometry
    return {
        "image_size": list(size),
        "resampling": f"{_RESAMPLING[resize]} (Pillow), the aspect ratio is not kept",
        "centre_crop": centre,
        "prepared_size": prepared_size,
        "crops": run.config.crops.to_dict(),
        "normalisation": run.config.normalisation,
        "affine": affine(run.config.normalisation),
    }


def affine(normalisation: str) -> dict[str, Any] | None:
    """A normalisation as numbers: ``input = pixel @ matrix + offset``, RGB pixels in [0, 1].

    None if it is not affine.
    """
    normalise = NORMALISATIONS[normalisation]
    offset = np.asarray(normalise(jnp.zeros(3)))
    matrix = np.stack([np.asarray(normalise(row)) for row in jnp.eye(3)]) - offset
    pixels = np.random.default_rng(0).random((8, 3), np.float32)
    wanted = normalise(jnp.asarray(pixels))
    if not np.allclose(pixels @ matrix + offset, wanted, rtol=1e-4, atol=1e-3):
        return None
    return {"matrix": matrix.tolist(), "offset": offset.tolist()}
