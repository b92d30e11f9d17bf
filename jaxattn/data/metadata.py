"""Age, sex and site of a lesion as the numbers that a network takes.

A vocabulary is learnt from the training part and stored with the run, so that a checkpoint can be
used on any data. Neither the diagnosis nor how it was confirmed is a field: it must not reach the
network.
"""

import collections
import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxattn.data.sources import source_index
from jaxattn.data.tables import CsvRow, column_names, read_table
from jaxattn.errors import invalid, unknown
from jaxattn.reading import Node

#: What a model can see beside the image: columns of `jaxattn.data.dataset.COLUMNS`.
FIELDS = ("age", "sex", "localization")
#: Ages that are none of a typing error, years.
AGES = (0, 130)
#: What a table may call the image, and the fields; the second names are those of the ISIC archive.
COLUMNS: Mapping[str, Sequence[str]] = {
    "image": ("image_id", "image"),
    "age": ("age", "age_approx"),
    "sex": ("sex",),
    "localization": ("localization", "anatom_site_general"),
}

#: A field's values: years for ``age``, else words. None, NaN, '' and "unknown" are missing.
Values = Sequence[Any] | np.ndarray
#: What is known of an image, by field; fields that are not there are missing.
Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """How metadata become numbers.

    Attributes:
        columns: What is known of each field, in the order of the network's input: of ``age`` the
            mean and the standard deviation, years; of other fields their words, lower case, sorted.
    """

    columns: Mapping[str, tuple[Any, ...]]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of words of each field; 0 for ``age``, which is a number."""
        return tuple(0 if name == "age" else len(known) for name, known in self.columns.items())

    def encode(self, table: Mapping[str, Values], count: int) -> Float[np.ndarray, "count fields"]:
        """Metadata as numbers.

        Args:
            table: The values of each field; a field that it lacks is missing of all images.
            count: Number of images.

        Returns:
            Float32: ages, standardised by mean and deviation; of words their places in the
            vocabulary. NaN where a value is missing, or a word that the vocabulary lacks.

        Raises:
            InputError: An age is no number in ``AGES``.
        """
        found = np.full((count, len(self.columns)), np.nan)
        for i, (name, known) in enumerate(self.columns.items()):
            values = table.get(name, ())
            if not len(values):
                continue
            if name == "age":
                mean, deviation = known
                found[:, i] = [(_years(value) - mean) / deviation for value in values]
            else:
                place = {word: float(number) for number, word in enumerate(known)}
                found[:, i] = [place.get(_word(value), math.nan) for value in values]
        return found.astype(np.float32)

    def unknown(self, table: Mapping[str, Values]) -> dict[str, dict[str, int]]:
        """The words that the vocabulary lacks, by field, with how many images have each."""
        found: dict[str, dict[str, int]] = {}
        for name, known in self.columns.items():
            if name != "age":
                words = collections.Counter(map(_word, table.get(name, ())))
                strange = {w: n for w, n in sorted(words.items()) if w and w not in known}
                if strange:
                    found[name] = strange
        return found

    def to_json(self) -> dict[str, list[Any]]:
        """For `from_json`."""
        return {name: list(known) for name, known in self.columns.items()}

    @classmethod
    def from_json(cls, node: Node) -> "Vocabulary":
        """What `to_json` made.

        Raises:
            InputError: It is damaged.
        """
        columns: dict[str, tuple[Any, ...]] = {}
        for name, known in node.entries().items():
            if name not in FIELDS:
                raise unknown(f"{node.path}, {node.field}", name, FIELDS)
            items = known.items()
            columns[name] = tuple(n.number(*AGES) if name == "age" else n.text() for n in items)
            if name == "age" and (len(items) != 2 or columns[name][1] <= 0):
                raise known.error("a mean and a standard deviation above 0")
        return cls(columns)


def learn(
    fields: Sequence[str], table: Mapping[str, np.ndarray], rows: Int[np.ndarray, " n"]
) -> Vocabulary | None:
    """The vocabulary of some rows of a table, the training part; None without fields.

    Raises:
        InputError: No row has a value of a field.
    """
    columns: dict[str, tuple[Any, ...]] = {}
    for name in fields:
        values = table[name][rows]
        if name == "age":
            ages = [years for years in map(_years, values) if not math.isnan(years)]
            columns[name] = _mean_and_deviation(ages) if ages else ()
        else:
            columns[name] = tuple(sorted({_word(value) for value in values} - {""}))
        if not columns[name]:
            given = f"{name!r}, which is missing of all its {len(rows)} images"
            raise invalid("metadata.fields", "fields that the training part knows", given)
    return Vocabulary(columns) if columns else None


def as_table(records: Sequence[Record]) -> dict[str, list[Any]]:
    """The records' values by field, as `Vocabulary.encode` takes them.

    Raises:
        InputError: A record has something else than ``FIELDS``.
    """
    for i, record in enumerate(records):
        for name in record:
            if name not in FIELDS:
                raise unknown(f"metadata[{i}]", name, FIELDS)
    return {name: [record.get(name) for record in records] for name in FIELDS}


def read(path: Path) -> dict[str, Record]:
    """The metadata of images in a table, by image id; see ``COLUMNS`` for its columns.

    Raises:
        InputError: It cannot be read, has no column of images or of metadata, a row has an age or a
            sex that is none, or two rows of one image differ.
    """
    given = column_names(path, [name for names in COLUMNS.values() for name in names])
    called = {
        field: next((name for name in names if name in given), "")
        for field, names in COLUMNS.items()
    }
    if not called["image"] or not any(called[field] for field in FIELDS):
        expected = f"a column image_id, and some of {', '.join(FIELDS)}"
        raise invalid(f"{path}, row 1", expected, ", ".join(given))
    found: dict[str, Record] = {}
    for row in read_table(path, list(filter(None, called.values()))):
        name, record = row.text(called["image"]), _record(row, called)
        if found.setdefault(name, record) != record:
            raise row.error(called["image"], "one row for each image, or rows that agree")
    return found


def describe(unknown_words: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Lines on the words that a vocabulary lacks, see `Vocabulary.unknown`."""
    return [
        f"{name}: {sum(words.values())} values that the run does not know count as missing "
        f"({', '.join(f'{word} {count}' for word, count in words.items())})"
        for name, words in unknown_words.items()
    ]


def _record(row: CsvRow, called: Mapping[str, str]) -> Record:
    """What a row knows; a field without a column or a value is left out."""
    reads: Mapping[str, Callable[[CsvRow, str], float | str]] = {
        "age": source_index.age,
        "sex": source_index.sex,
        "localization": source_index.optional_text,
    }
    return {
        name: read_field(row, called[name])
        for name, read_field in reads.items()
        if called[name] and not source_index.is_unknown(row[called[name]])
    }


def _years(value: Any) -> float:
    """An age; NaN if missing."""
    if value is None or value == "":
        return math.nan
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise invalid("age", "years, as a number", repr(value))
    years = float(value)
    if not math.isnan(years) and not AGES[0] <= years <= AGES[1]:
        raise invalid("age", f"a number in [{AGES[0]}, {AGES[1]}]", years)
    return years


def _word(value: Any) -> str:
    """A word in lower case; '' if missing."""
    text = "" if value is None else str(value).strip().lower()
    return "" if source_index.is_unknown(text) else text


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Of exact sums, so that every version of NumPy gives the same; 1 for a deviation of 0."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)) or 1.0
