"""A trained run, loaded to classify images."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxattn import checkpoints, evaluate, run_dir
from jaxattn.data import images as decoding
from jaxattn.data.dataset import height_width
from jaxattn.errors import invalid
from jaxattn.models import registry as models
from jaxattn.runtime import devices
from jaxattn.state import Variables


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained classifier.

    Attributes:
        folder: The run's folder.
        config: Its config.
        class_names: Classes in the order of the probabilities.
        metadata: ``step`` of the checkpoint, ``model`` and its options, ``image_size``,
            ``training_images`` by class.
        variables: Params and batch_stats.
    """

    folder: Path
    config: ConfigDict
    class_names: tuple[str, ...]
    metadata: Mapping[str, Any]
    variables: Variables
    _step: Callable[..., Any]

    def predict(
        self, images: Iterable[str | Path | np.ndarray]
    ) -> tuple[Float[np.ndarray, "n classes"], dict[str, Float[np.ndarray, "n K h w"]]]:
        """Classifies images as evaluation does: same decoding, crops and test-time augmentation.

        Args:
            images: Paths of JPEG files, or RGB images, uint8 ``(H, W, 3)``, of any size.

        Returns:
            The probabilities of each class, float32, and the attention maps by name, float32.

        Raises:
            InputError: An image cannot be decoded or is not RGB, or none is given.
        """
        size = height_width(self.config.dataset.image_size)
        centre = self.config.dataset.centre_crop
        pixels = [_read(image, size, centre) for image in images]
        if not pixels:
            raise invalid("images", "at least one image", "none")
        batch_size = self.config.evaluation.batch_size
        outputs = []
        for start in range(0, len(pixels), batch_size):
            part = pixels[start : start + batch_size]
            batch = np.stack(part + part[-1:] * (batch_size - len(part)))
            found = jax.device_get(self._step(self.variables, {}, {"image": batch}))
            outputs.append(found)
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(pixels)], *outputs)


def load_run(folder: str | Path, checkpoint: str = "best") -> Run:
    """Loads a run to classify images with.

    Args:
        folder: The run's folder.
        checkpoint: ``best``, by validation, or ``latest``.

    Raises:
        InputError: There is no trained run in the folder.
    """
    folder = Path(folder).expanduser()
    config = run_dir.read_config(folder)
    training_images = run_dir.read_classes(folder)
    class_names = tuple(training_images)
    model = models.create(
        num_classes=len(class_names),
        dtype=jnp.dtype(config.dtype),
        **config.model.to_dict(),
    )
    variables, step = checkpoints.read_variables(folder / run_dir.CHECKPOINTS, checkpoint)
    mesh = devices.mesh()
    return Run(
        folder=folder,
        config=config,
        class_names=class_names,
        metadata={
            "step": step,
            "model": config.model.to_dict(),
            "image_size": config.dataset.image_size,
            "training_images": training_images,
        },
        variables=devices.put_replicated(mesh, variables),
        _step=evaluate.make_predict_step(config, model, mesh, config.evaluation.tta),
    )


def _read(image: str | Path | np.ndarray, size: tuple[int, int], centre: float) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise invalid("image", "uint8 (H, W, 3)", f"{image.dtype} {image.shape}")
        return decoding.resize_image(image, size, centre)
    try:
        return decoding.decode_image(Path(image).expanduser().read_bytes(), size, centre)
    except decoding.DECODE_ERRORS as error:
        given = f"a file that cannot be decoded ({error})"
        raise invalid(str(image), "a JPEG file", given) from error
