"""Reads a prepared data set: TFDS records in ArrayRecord files, and index.csv."""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from jaxattn.data import images
from jaxattn.data.dataset import COLUMNS, MASKS, Dataset, Example, height_width
from jaxattn.data.sources.source_index import FURTHER_COLUMNS, INDEX_COLUMNS
from jaxattn.data.tables import CsvRow, read_table
from jaxattn.errors import invalid

INDEX = "index.csv"
INFO = "dataset_info.json"
REPORT = "report.json"
SPLIT = "train"


def load(
    data_dir: Path | str,
    image_size: int | tuple[int, int] | None = None,
    centre: float = 0.0,
) -> Dataset:
    """Opens a prepared data set: reads its metadata, no image.

    Args:
        data_dir: Folder that ``python -m jaxattn.prepare`` wrote.
        image_size: Height and width in pixels to resize images (antialiased bilinear) and masks
            (nearest neighbour) to, whatever their aspect ratio, or one number for a square; None
            for each image's own size.
        centre: With a size: the square to cut out of the middle first, its side a share of the
            image's shorter side in (0, 1]; 0 for none.

    Returns:
        The data set; its records are `Example` dicts. The table has the further columns ``part``
        (train, validation, test) and ``has_attributes`` if the source has them.

    Raises:
        InputError: The folder is no prepared data set, or its index and records disagree; also
            raised by a record that cannot be read or decoded.
    """
    if not 0 <= centre <= 1:
        raise invalid("dataset.centre_crop", "a number in [0, 1]", centre)
    folder = Path(data_dir)
    builder = _builder(folder)
    class_names = tuple(builder.info.features["label"].names)
    rows = read_table(folder / INDEX, INDEX_COLUMNS)
    count = builder.info.splits[SPLIT].num_examples
    if len(rows) != count:
        raise invalid(str(folder / INDEX), f"{count} rows, one per record", len(rows))
    table = _table(rows, class_names)
    size = None if image_size is None else height_width(image_size)
    records = Records(folder, table["image_id"], size, centre)
    return Dataset(builder.info.name, class_names, table, records, _prepared_size(folder))


class Records(Sequence[Example]):
    """Decoded records by position, read from disk on access.

    Pickles as a path: each process opens the files itself, on first use.
    """

    def __init__(
        self, folder: Path, image_ids: np.ndarray, size: tuple[int, int] | None, centre: float = 0.0
    ):
        self._folder = folder
        self._image_ids = image_ids
        self._size, self._centre = size, centre
        self._masks: Collection[str] = tuple(MASKS.values())
        # The process that opened the files, and the open records.
        self._source: tuple[int, Sequence[Any]] | None = None

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}

    def decoding(self, fields: Collection[str]) -> "Records":
        """The same records, decoding only these masks; see `Dataset.decoding`."""
        records = Records(self._folder, self._image_ids, self._size, self._centre)
        records._masks = fields
        return records

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # raises IndexError; negative ones count from the end
        try:
            record = self._open()[index]
            # ArrayRecord silently reads an empty record where a file is cut short.
            if record.get("image_id") != self._image_ids[index].encode():
                raise ValueError(f"the record is of {record.get('image_id')}")
            place = self._size, self._centre
            example: Example = {"image": images.decode_image(record["image"], *place)}
            if record["has_mask"] and "mask" in self._masks:
                example["mask"] = images.decode_mask(record["mask"], *place)
            if record.get("has_attributes") and "attributes" in self._masks:
                example["attributes"] = images.decode_values(record["attributes"], *place)
        except (*images.DECODE_ERRORS, RuntimeError) as error:
            raise invalid(
                f"{self._folder}, record {index}, image {self._image_ids[index]}",
                "the record as it was prepared",
                f"one that cannot be decoded ({error})",
            ) from error
        return example

    def _open(self) -> Sequence[Any]:
        # A forked child inherits the parent's reader without its threads.
        if self._source is None or self._source[0] != os.getpid():
            self._source = os.getpid(), open_records(self._folder)
        return self._source[1]


def open_records(folder: Path) -> Sequence[Any]:
    """The records of a prepared folder: dicts with image and masks still encoded."""
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    return _Encoded(_builder(folder).as_data_source(split=SPLIT, deserialize_method=raw))


class _Encoded(Sequence[Any]):
    """Records as stored: each a ``tf.train.Example`` with one value per feature.

    TFDS' own parser checks the type of every field, which takes longer than reading the record.
    """

    def __init__(self, source: Sequence[Any]):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        place = range(len(self))[index]  # raises the IndexError that ends an iteration
        features = tf_example_pb2.Example.FromString(self._source[place]).features.feature
        return {
            name: getattr(feature, feature.WhichOneof("kind")).value[0]
            for name, feature in features.items()
        }


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds a prepared data set."""
    return (folder / INFO).is_file() and (folder / INDEX).is_file()


def _builder(folder: Path) -> tfds.core.DatasetBuilder:
    if not (folder / INFO).is_file():
        raise invalid(str(folder), f"a folder of python -m jaxattn.prepare, with {INFO}", "none")
    return tfds.builder_from_directory(folder)


def _prepared_size(folder: Path) -> int | None:
    """The ``size`` that the images were prepared with; None where the report does not say."""
    path = folder / REPORT
    return json.loads(path.read_text(encoding="utf-8")).get("size") if path.is_file() else None


def _table(rows: Sequence[CsvRow], class_names: tuple[str, ...]) -> dict[str, np.ndarray]:
    columns: dict[str, list] = {
        "label": [class_names.index(row.choice("dx", class_names)) for row in rows],
        "age": [row.number("age", 0, 130) if row["age"] else np.nan for row in rows],
    }
    further = {name: type_ for name, type_ in FURTHER_COLUMNS.items() if name in rows[0].fields}
    types = {**COLUMNS, **further}
    for name in types:
        if name.startswith("has_"):
            columns[name] = [row.choice(name, ("0", "1")) == "1" for row in rows]
    return {
        name: np.array(columns.get(name) or [row[name] for row in rows], dtype=dtype)
        for name, dtype in types.items()
    }
