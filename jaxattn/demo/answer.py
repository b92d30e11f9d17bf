"""What the page shows of an image: probabilities, the image, and maps to lay over it."""

import base64
import io
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxattn import overlays
from jaxattn.data import images
from jaxattn.data.crops import Crops
from jaxattn.errors import InputError, invalid
from jaxattn.run import Run

#: Largest image, in bytes of its file and in pixels.
MAX_BYTES, MAX_PIXELS = 32 << 20, 64_000_000
#: Length of the longer side of the pictures on the page, pixels.
SHOWN = 720

_TITLES = {"grad_cam": "Grad-CAM", "cam": "CAM"}


def answer(run: Run, data: bytes) -> dict[str, Any]:
    """Classifies an image.

    Args:
        run: The run.
        data: The image's file.

    Returns:
        For JSON: ``predicted``, the class by the rule of evaluation; ``probabilities``, (class,
        value), largest first; ``image``, a data URI of what the model saw, sharper than it saw it;
        ``maps``, attention's first: of each, its ``title``, a ``note`` and ``src``, a data URI of
        its colours, of the image's size.

    Raises:
        InputError: It is no image, or too large.
    """
    height, width = dimensions(data)
    if height * width > MAX_PIXELS:
        limit = f"an image of at most {MAX_PIXELS // 1_000_000} megapixels"
        raise invalid("file", limit, f"one of {width} × {height} pixels")
    probabilities, maps = run.predict([data])
    scale = min(1.0, SHOWN / max(height, width))
    size = max(1, round(scale * height)), max(1, round(scale * width))
    seen = _field(run, images.read_image(data, size))
    ranked = np.argsort(-probabilities[0], kind="stable")
    return {
        "predicted": run.class_names[run.decide(probabilities)[0]],
        "probabilities": [(run.class_names[c], float(probabilities[0, c])) for c in ranked],
        "image": _uri(seen, "JPEG"),
        "maps": [
            _map(name, maps[name][0], seen.shape[:2])
            for name in sorted(maps, key=lambda name: (name in _TITLES, name))
        ],
    }


def dimensions(data: bytes) -> tuple[int, int]:
    """Height and width of an image as it is seen, without decoding it.

    Raises:
        InputError: It is no image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=images.FORMATS) as image:
            width, height = images.upright_size(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise invalid("file", "a smaller image", "one of too many pixels") from error
    except Exception as error:  # what PIL raises for a damaged file has no common base
        raise InputError("file: this is no image, or a damaged one") from error
    return height, width


def _field(run: Run, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The part of an upright image, of any resolution, that the model sees."""
    height, width = image.shape[:2]
    if run.config.dataset.centre_crop:
        side = max(1, round(run.config.dataset.centre_crop * min(height, width)))
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    given = run.geometry[0]
    field = Crops(**run.config.crops).field(*given)
    return image[
        tuple(
            slice(round(part.start * shown / side), max(1, round(part.stop * shown / side)))
            for part, shown, side in zip(field, image.shape[:2], given, strict=True)
        )
    ]


def _map(name: str, maps: Float[np.ndarray, "K h w"], size: tuple[int, int]) -> dict[str, Any]:
    heads, height, width = maps.shape
    heat = overlays.heatmap(maps, *size)
    said = [f"{height} × {width} positions", *([f"{heads} heads summed"] if heads > 1 else [])]
    peak = overlays.peak(maps)
    said.append(f"largest value {peak:.1f} × the mean" if heat.any() else "the same everywhere")
    title = _TITLES.get(name, name.replace("_", " ").capitalize())
    return {"title": title, "note": ", ".join(said), "src": _uri(overlays.colour(heat), "PNG")}


def _uri(pixels: UInt8[np.ndarray, "h w 3"], kind: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=90)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
