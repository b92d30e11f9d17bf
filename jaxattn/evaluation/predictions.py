"""Predictions of a part of a data set, kept on disk as CSV: all metrics are computed from them."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxattn import files
from jaxattn.data.dataset import Dataset
from jaxattn.errors import invalid, unknown
from jaxattn.reading import read_csv, reading

#: Columns of a data set's table that are written beside the predictions, for subgroups.
METADATA = ("age", "sex", "localization", "dx_type", "image_source")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of some images, and what is known of them.

    Attributes:
        class_names: In index order.
        image_ids: ``(N,)``.
        lesion_ids: ``(N,)``; '' where unknown.
        labels: True class indices.
        predictions: Predicted class indices; with logit adjustment not always the most probable.
        probabilities: Of each class.
        metadata: Columns of text by name; '' where unknown.
    """

    class_names: tuple[str, ...]
    image_ids: Shaped[np.ndarray, " N"]
    lesion_ids: Shaped[np.ndarray, " N"]
    labels: Int[np.ndarray, " N"]
    predictions: Int[np.ndarray, " N"]
    probabilities: Float[np.ndarray, "N C"]
    metadata: Mapping[str, Shaped[np.ndarray, " N"]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lesions(self) -> Int[np.ndarray, " N"]:
        """The number of each image's lesion, from 0; an image without one is a lesion of its own.

        Lesions are numbered in the order of the images, so that the order of the images, not the
        spelling of ids, decides what a seed of a bootstrap draws.
        """
        alone = np.char.add("\0", self.image_ids.astype(str))
        named = self.lesion_ids.astype(str)
        _, first, number = np.unique(
            np.where(named == "", alone, named), return_index=True, return_inverse=True
        )
        return np.argsort(np.argsort(first))[number]

    def take(self, rows: Shaped[np.ndarray, " n"]) -> "Predictions":
        """Some rows, by index or by a boolean mask."""
        changed = {
            name: getattr(self, name)[rows]
            for name in ("image_ids", "lesion_ids", "labels", "predictions", "probabilities")
        }
        metadata = {name: column[rows] for name, column in self.metadata.items()}
        return dataclasses.replace(self, metadata=metadata, **changed)


def of_dataset(
    dataset: Dataset,
    rows: Int[np.ndarray, " N"],
    probabilities: Float[np.ndarray, "N C"],
    predictions: Int[np.ndarray, " N"],
) -> Predictions:
    """Predictions of rows of a data set, with its metadata."""
    table = dataset.table
    return Predictions(
        class_names=dataset.class_names,
        image_ids=table["image_id"][rows],
        lesion_ids=table["lesion_id"][rows],
        labels=dataset.labels[rows].astype(np.int64),
        predictions=predictions.astype(np.int64),
        probabilities=np.asarray(probabilities, np.float64),
        metadata={
            name: np.array([_text(value) for value in table[name][rows]])
            for name in METADATA
            if name in table
        },
    )


def write(path: Path, found: Predictions) -> None:
    """Writes the CSV: ids, label, prediction, metadata, and probabilities exact to float32."""
    names = found.class_names
    with files.replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = ["image_id", "lesion_id", "label", "prediction"]
        writer.writerow([*columns, *found.metadata, *(f"p_{name}" for name in names)])
        for i in range(len(found)):
            writer.writerow(
                [
                    found.image_ids[i],
                    found.lesion_ids[i],
                    names[found.labels[i]],
                    names[found.predictions[i]],
                    *(column[i] for column in found.metadata.values()),
                    *(f"{p:.9g}" for p in found.probabilities[i]),
                ]
            )


def read(path: Path, names: Sequence[str] = ()) -> Predictions:
    """Reads the CSV that `write` wrote.

    Args:
        path: The file.
        names: The classes, in index order; by default those of the columns ``p_CLASS``.

    Raises:
        InputError: A column is missing, a class unknown or a probability no number.
    """
    given, rows = read_csv(path)
    names = tuple(names) or tuple(c.removeprefix("p_") for c in given if c.startswith("p_"))
    wanted = ["image_id", "lesion_id", "label", *(f"p_{name}" for name in names)]
    absent = [column for column in wanted if column not in given]
    if absent or not names:
        raise invalid(str(path), f"columns {', '.join(wanted)}", f"none of {', '.join(absent)}")
    labels = [class_index(f"{path}, label", row["label"], names) for row in rows]
    with reading(path, "probabilities"):
        values = np.array([[float(row[f"p_{name}"]) for name in names] for row in rows])
    if not ((values >= 0) & (values <= 1)).all():
        raise invalid(str(path), "probabilities", "numbers outside [0, 1]")
    # Rounded to float32 they are, bit by bit, those that were written.
    probabilities = np.array(values, np.float32).reshape(-1, len(names)).astype(np.float64)
    predicted = probabilities.argmax(axis=1)
    if "prediction" in given:
        field = f"{path}, prediction"
        predicted = np.array([class_index(field, row["prediction"], names) for row in rows], int)
    return Predictions(
        class_names=names,
        image_ids=np.array([row["image_id"] for row in rows], np.str_),
        lesion_ids=np.array([row["lesion_id"] for row in rows], np.str_),
        labels=np.array(labels, np.int64),
        predictions=predicted.astype(np.int64),
        probabilities=probabilities,
        metadata={
            name: np.array([row[name] or "" for row in rows], np.str_)
            for name in METADATA
            if name in given
        },
    )


def class_index(field: str, value: Any, names: Sequence[str]) -> int:
    """The index of a class given by name or by index.

    Args:
        field: What an error names.
        value: The name or index.
        names: Of the classes, in index order.

    Raises:
        InputError: There is no such class.
    """
    known = {str(i): i for i in range(len(names))} | {name: i for i, name in enumerate(names)}
    if str(value) not in known:
        raise unknown(field, str(value), names)
    return known[str(value)]


def _text(value: Any) -> str:
    """A value of a table as text; '' for NaN, no decimals for whole numbers."""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:g}"
    return str(value)
