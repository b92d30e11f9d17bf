"""Reads a prepared data set: TFDS records in ArrayRecord files, and index.csv."""

import copy
import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from jaxattn.data import fingerprint, images
from jaxattn.data.dataset import COLUMNS, MASKS, Dataset, Example, height_width
from jaxattn.data.sources.source_index import FURTHER_COLUMNS, HASH_COLUMNS, INDEX_COLUMNS
from jaxattn.data.tables import CsvRow, read_table
from jaxattn.data.tfds import examples, schema
from jaxattn.errors import InputError, invalid, unknown
from jaxattn.reading import read_json, reason

INDEX = "index.csv"
REPORT = "report.json"


def load(
    data_dir: Path | str,
    image_size: int | tuple[int, int] | None = None,
    centre: float = 0.0,
    resize: str = "antialias",
) -> Dataset:
    """Opens a prepared data set: reads its metadata, no image.

    Args:
        data_dir: Folder that ``python -m jaxattn.prepare`` wrote.
        image_size: Height and width in pixels to resize images (see ``resize``) and masks
            (nearest neighbour) to, whatever their aspect ratio, or one number for a square; None
            for each image's own size.
        centre: With a size: the square to cut out of the middle first, its side a share of the
            image's shorter side in (0, 1]; 0 for none.
        resize: How images are resized, see `images.decode_image`.

    Returns:
        The data set; its records are `Example` dicts. The table has the further columns ``part``
        (train, validation, test), ``patient_id``, ``image_source`` and ``has_attributes`` if the
        source has them, and
        ``pixel_hash`` and ``perceptual_hash`` unless an older version prepared it.

    Raises:
        InputError: The folder is no prepared data set, or its index and records disagree; also
            raised by a record that cannot be read or decoded.
    """
    if not 0 <= centre <= 1:
        raise invalid("dataset.centre_crop", "a number in [0, 1]", centre)
    if resize not in images.RESIZE:
        raise unknown("dataset.resize", resize, images.RESIZE)
    folder = Path(data_dir)
    described = schema.read(folder)
    class_names = described.class_names
    rows = read_table(folder / INDEX, INDEX_COLUMNS)
    if len(rows) != len(described):
        raise invalid(str(folder / INDEX), f"{len(described)} rows, one per record", len(rows))
    table = _table(rows, class_names)
    size = None if image_size is None else height_width(image_size)
    identity = table["label"], table["lesion_id"]
    records = Records(folder, table["image_id"], size, centre, *identity, resize)
    found = fingerprint.of(class_names, table)
    place = str(folder / fingerprint.FILE)
    fingerprint.check(place, fingerprint.read(folder), found, str(folder / INDEX))
    prepared_size = _prepared_size(folder)
    return Dataset(described.name, class_names, table, records, prepared_size, found)


class Records(Sequence[Example]):
    """Decoded records by position, read from disk on access.

    Pickles as a path: each process opens the files itself, on first use.
    """

    def __init__(
        self,
        folder: Path,
        image_ids: np.ndarray,
        size: tuple[int, int] | None,
        centre: float = 0.0,
        labels: np.ndarray | None = None,
        lesion_ids: np.ndarray | None = None,
        resize: str = "antialias",
    ):
        self._folder = folder
        self._image_ids = image_ids
        # What the records must agree with; None: not checked.
        self._labels, self._lesion_ids = labels, lesion_ids
        self._size, self._centre, self._resize = size, centre, resize
        self._masks: Collection[str] = tuple(MASKS.values())
        # The process that opened the files, and the open records.
        self._source: tuple[int, Sequence[Any]] | None = None

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}

    def decoding(self, fields: Collection[str]) -> "Records":
        """The same records, decoding only these masks; see `Dataset.decoding`."""
        records = copy.copy(self)
        records._masks, records._source = fields, None
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
            self._check(index, record)
            place = self._size, self._centre
            example: Example = {
                "image": images.decode_image(record["image"], *place, resize=self._resize)
            }
            if record["has_mask"] and "mask" in self._masks:
                example["mask"] = images.decode_mask(record["mask"], *place)
            if record.get("has_attributes") and "attributes" in self._masks:
                example["attributes"] = images.decode_values(record["attributes"], *place)
        except InputError:
            raise
        except Exception as error:  # ArrayRecord, protocol buffers and PIL have dozens
            raise invalid(
                f"{self._folder}, record {index}, image {self._image_ids[index]}",
                "the record as it was prepared",
                f"one that cannot be decoded ({reason(error)})",
            ) from error
        return example

    def _check(self, index: int, record: Mapping[str, Any]) -> None:
        """Raises ValueError if a record has another label or lesion than the index."""
        if self._labels is not None and record["label"] != self._labels[index]:
            raise ValueError(f"its label is {record['label']}, not the {INDEX}'s")
        if self._lesion_ids is not None:
            lesion = record["lesion_id"].decode()
            if lesion != self._lesion_ids[index]:
                raise ValueError(f"its lesion is {lesion}, not the {INDEX}'s")

    def _open(self) -> Sequence[Any]:
        # A forked child inherits the parent's reader without its threads.
        if self._source is None or self._source[0] != os.getpid():
            self._source = os.getpid(), open_records(self._folder)
        return self._source[1]


def open_records(folder: Path) -> Sequence[Any]:
    """The records of a prepared folder: dicts with image and masks still encoded."""
    return _Encoded(schema.read(folder).shards)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Which records of a file ArrayRecord reads; names are ArrayRecord's."""

    filename: str
    take: int
    skip: int = 0

    @property
    def examples_in_shard(self) -> int:
        """All of them."""
        return self.take


class _Encoded(Sequence[Any]):
    """Records as stored: each a ``tf.train.Example`` with one value per feature."""

    def __init__(self, shards: Sequence[tuple[Path, int]]):
        self._source = ArrayRecordDataSource([_Shard(str(path), n) for path, n in shards])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        place = range(len(self))[index]  # raises the IndexError that ends an iteration
        return examples.parse(self._source[place])


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds a prepared data set."""
    return (folder / schema.INFO).is_file() and (folder / INDEX).is_file()


def _prepared_size(folder: Path) -> int | None:
    """The ``size`` that the images were prepared with; None where the report does not say."""
    path = folder / REPORT
    if not path.is_file():
        return None
    size = read_json(path)["size"]
    return None if size.value is None else size.whole(1)


def _table(rows: Sequence[CsvRow], class_names: tuple[str, ...]) -> dict[str, np.ndarray]:
    columns: dict[str, list] = {
        "label": [class_names.index(row.choice("dx", class_names)) for row in rows],
        "age": [row.number("age", 0, 130) if row["age"] else np.nan for row in rows],
    }
    known = {**FURTHER_COLUMNS, **dict.fromkeys(HASH_COLUMNS, np.str_)}
    further = {name: type_ for name, type_ in known.items() if name in rows[0].fields}
    types = {**COLUMNS, **further}
    for name in types:
        if name.startswith("has_"):
            columns[name] = [row.choice(name, ("0", "1")) == "1" for row in rows]
    return {
        name: np.array(columns.get(name) or [row[name] for row in rows], dtype=dtype)
        for name, dtype in types.items()
    }
