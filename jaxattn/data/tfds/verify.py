"""Rechecks a prepared data set: ``python -m jaxattn.prepare --verify --out=DIR``."""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxattn.data import fingerprint, hashes
from jaxattn.data.dataset import Dataset
from jaxattn.data.sources.source_index import HASH_COLUMNS
from jaxattn.data.tables import read_table
from jaxattn.data.tfds import reader
from jaxattn.errors import invalid


def verify(
    folder: Path,
    track: Callable[[Iterable[Any], str, int], Iterable[Any]] = lambda items, what, total: items,
) -> bool:
    """Reads every record and compares it with the index: image, label, lesion and pixels.

    Args:
        folder: A prepared folder. If an older version prepared it, the hashes of its pixels and its
            fingerprint are added.
        track: Shows progress.

    Returns:
        Whether they were added.

    Raises:
        InputError: The folder is no data set, a record is damaged, or one disagrees with the index.
    """
    dataset = reader.load(folder).decoding(())
    recorded = dataset.table.get(HASH_COLUMNS[0])
    found = []
    for i in track(range(len(dataset)), "verifying", len(dataset)):
        image = dataset.records[i]["image"]
        found.append((hashes.pixels(image), hashes.perceptual(image)))
        if recorded is not None and found[-1][0] != recorded[i]:
            place = f"{folder}, record {i}, image {dataset.table['image_id'][i]}"
            raise invalid(place, "the pixels that were prepared", "others")
    if recorded is None:
        _add(folder, dataset, found)
    return recorded is None


def _add(folder: Path, dataset: Dataset, found: list[tuple[str, str]]) -> None:
    """Adds the hashes to the index, and the fingerprint."""
    path = folder / reader.INDEX
    rows = [list(row.fields.items()) for row in read_table(path, ("image_id",))]
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow([*(name for name, _ in rows[0]), *HASH_COLUMNS])
        for row, values in zip(rows, found, strict=True):
            out.writerow([*(value for _, value in row), *values])
    columns = dict(zip(HASH_COLUMNS, np.array(found).T, strict=True))
    part.replace(path)
    # Last: without it an index that already has the hashes is read as it is.
    fingerprint.write(folder, fingerprint.of(dataset.class_names, {**dataset.table, **columns}))
