"""Files of predictions: CSV, JSON lines, and what the ISIC challenges take."""

import csv
import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxattn.errors import invalid, unknown
from jaxattn.registry import Registry


class Row(NamedTuple):
    """An image and what was predicted.

    Attributes:
        image_id: The file's name without its ending.
        path: The file.
        probabilities: Of each class; empty if it could not be read.
        scores: The same, adjusted by the rule of decision, of sum 1: the largest is the prediction.
        prediction: Name of the predicted class.
        error: Why it could not be read.
    """

    image_id: str
    path: str
    probabilities: Sequence[float] | np.ndarray = ()
    scores: Sequence[float] | np.ndarray = ()
    prediction: str = ""
    error: str = ""


class Format(NamedTuple):
    """How predictions are written.

    Attributes:
        header: What the file begins with.
        line: A row's text; empty for a row that the format cannot hold.
        unique: Whether each image_id may occur once only.
    """

    header: str
    line: Callable[[Row], str]
    unique: bool = False


#: Formats by name: ``class names -> Format``.
FORMATS: Registry[Callable[[Sequence[str]], Format]] = Registry("--format")

#: The columns of each challenge, and the names of the classes that a column is the sum of.
ISIC_COLUMNS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "isic2017": {
        "melanoma": ("mel", "melanoma"),
        "seborrheic_keratosis": ("bkl", "seborrheic_keratosis"),
    },
    "isic2018": {
        "MEL": ("mel", "melanoma"),
        "NV": ("nv", "nevus"),
        "BCC": ("bcc",),
        "AKIEC": ("akiec", "ak"),
        "BKL": ("bkl", "seborrheic_keratosis"),
        "DF": ("df",),
        "VASC": ("vasc",),
    },
    "isic2019": {
        "MEL": ("mel", "melanoma"),
        "NV": ("nv", "nevus"),
        "BCC": ("bcc",),
        "AK": ("ak", "akiec"),
        "BKL": ("bkl", "seborrheic_keratosis"),
        "DF": ("df",),
        "VASC": ("vasc",),
        "SCC": ("scc",),
        "UNK": ("unk",),
    },
}
#: Challenges of single diagnoses against the rest, in which other classes need no column.
_ONE_AGAINST_REST = ("isic2017",)


@FORMATS.register("csv")
def _csv(class_names: Sequence[str]) -> Format:
    """One row per image, probabilities in class order as in an evaluation's predictions."""
    columns = ["image_id", "path", *(f"p_{name}" for name in class_names), "prediction", "error"]

    def line(row: Row) -> str:
        values = [f"{p:.9g}" for p in row.probabilities] or [""] * len(class_names)
        return _joined([row.image_id, row.path, *values, row.prediction, row.error])

    return Format(_joined(columns), line)


@FORMATS.register("jsonl")
def _jsonl(class_names: Sequence[str]) -> Format:
    """One object per line; a file that could not be read has ``error`` instead of predictions."""

    def line(row: Row) -> str:
        entry: dict[str, object] = {"image_id": row.image_id, "path": row.path}
        if row.error:
            return json.dumps(entry | {"error": row.error}) + "\n"
        values = [float(f"{p:.9g}") for p in row.probabilities]
        entry["probabilities"] = dict(zip(class_names, values, strict=True))
        return json.dumps(entry | {"prediction": row.prediction}) + "\n"

    return Format("", line)


def _isic(name: str, class_names: Sequence[str]) -> Format:
    """A challenge's file; columns that no class fills are 0, unreadable images are left out.

    Raises:
        InputError: A class has no column.
    """
    columns = ISIC_COLUMNS[name]
    of_class = {known: i for i, names in enumerate(columns.values()) for known in names}
    places = [of_class.get(each.lower()) for each in class_names]
    for place, each in zip(places, class_names, strict=True):
        if place is None and name not in _ONE_AGAINST_REST:
            raise unknown(f"--format={name}, class", each, of_class)
    if all(place is None for place in places):
        raise invalid(f"--format={name}", f"a class for {' or '.join(columns)}", class_names)
    first = "image_id" if name in _ONE_AGAINST_REST else "image"

    def line(row: Row) -> str:
        if row.error:
            return ""
        values = [0.0] * len(columns)  # "0.0": the challenges' scorer refuses integers
        for place, score in zip(places, row.scores, strict=True):
            if place is not None:
                values[place] += float(score)
        return _joined([row.image_id, *(repr(min(value, 1.0)) for value in values)])

    return Format(_joined([first, *columns]), line, unique=True)


for _name in ISIC_COLUMNS:
    FORMATS.register(_name)(functools.partial(_isic, _name))


def _joined(values: Sequence[str]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(values)
    return file.getvalue()
