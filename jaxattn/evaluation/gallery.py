"""The cases that a report shows: chosen, and kept with their maps at the picture's own size."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jaxattn import files, overlays
from jaxattn.data import leaks, load
from jaxattn.data.crops import Crops
from jaxattn.data.dataset import Dataset, height_width
from jaxattn.evaluation.predictions import METADATA, Predictions

#: Longest side of a picture, pixels.
LONGEST = 600
#: Synthetic images have no size of their own; they are drawn at this one.
_SYNTHETIC = 256


def write(
    path: Path,
    config: ConfigDict,
    dataset: Dataset,
    rows: np.ndarray,
    found: Predictions,
    maps: Mapping[str, np.ndarray],
) -> None:
    """Writes the cases to show, see `overlays.select_cases`, as an NPZ file.

    Args:
        path: The file.
        config: Of the run, resolved.
        dataset: The data set, at the network's size.
        rows: Rows of the predictions.
        found: Predictions of these rows.
        maps: Maps of these rows by name, each ``(n, K, h, w)``.
    """
    chosen = overlays.select_cases(found.labels, found.probabilities, found.predictions)
    crops, shown = Crops(**config.crops), found.take(chosen)
    examples = [dataset.records[row] for row in rows[chosen]]
    images = np.stack([example["image"] for example in examples])
    masks = [example.get("mask", np.zeros(images.shape[1:3], np.uint8)) for example in examples]
    seen = (slice(None), *crops.field(*images.shape[1:3]))
    predicted = shown.predictions[:, None]
    arrays: dict[str, Any] = {
        "image_id": shown.image_ids,
        "image": images[seen],
        "mask": np.stack(masks)[seen],
        "label": shown.labels,
        "prediction": shown.predictions,
        "probability": np.take_along_axis(shown.probabilities, predicted, axis=1)[:, 0],
        "probabilities": shown.probabilities,
        **{f"map/{name}": values[chosen] for name, values in maps.items()},
        **{f"metadata/{name}": shown.metadata[name] for name in METADATA if name in shown.metadata},
    }
    records = _originals(config, dataset)
    for i, row in enumerate(rows[chosen]):
        picture, mask = _picture(records[row], crops, images.shape[1:3])
        arrays[f"picture/{i}"] = _encoded(picture, "JPEG", quality=88)
        arrays[f"picture_mask/{i}"] = _encoded(mask, "PNG")
    with files.replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def decoded(encoded: np.ndarray) -> np.ndarray:
    """The pixels of a file in an array."""
    with Image.open(io.BytesIO(encoded.tobytes())) as image:
        return np.asarray(image)


def _originals(config: ConfigDict, dataset: Dataset) -> Sequence[Any]:
    """The records at their own size and aspect ratio, where the data set can give them."""
    own = config.dataset.copy_and_resolve_references()
    if own.name == "prepared" and not own.centre_crop:
        own.image_size = None
    elif own.name == "synthetic" and len(set(height_width(own.image_size))) == 1:
        own.image_size = max(_SYNTHETIC, *height_width(own.image_size))
    else:
        return dataset.records
    original = leaks.copies(load.load(own), config.split.leak)
    same = np.array_equal(original.table["image_id"], dataset.table["image_id"])
    return original.records if same else dataset.records


def _picture(
    example: Mapping[str, np.ndarray], crops: Crops, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """What the model sees of an image at its own size, at most ``LONGEST``, and the lesion mask."""
    image = example["image"]
    mask = example.get("mask", np.zeros(image.shape[:2], np.uint8))
    part = tuple(
        slice(round(side.start * own / whole), round(side.stop * own / whole))
        for side, own, whole in zip(crops.field(*size), image.shape[:2], size, strict=True)
    )
    image, mask = image[part], np.where(mask[part] != 0, np.uint8(255), np.uint8(0))
    scale = min(1.0, LONGEST / max(image.shape[:2]))
    width, height = (max(1, round(scale * side)) for side in image.shape[1::-1])
    filters = Image.Resampling
    return (
        np.asarray(Image.fromarray(image).resize((width, height), filters.BILINEAR)),
        np.asarray(Image.fromarray(mask).resize((width, height), filters.NEAREST)),
    )


def _encoded(pixels: np.ndarray, kind: str, **options: Any) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)
