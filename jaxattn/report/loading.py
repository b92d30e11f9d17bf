"""Reads the folder of a run."""

import collections
import csv
import dataclasses
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxattn import config as configs
from jaxattn.errors import invalid, unknown

EVALUATE = "python -m jaxattn.evaluate --run="
TRAIN = "python -m jaxattn.train --workdir="

#: Names in evaluations that older versions wrote.
_OLD_NAMES = {"positive": "target", "prior_exponent": "logit_adjustment"}
_CASES = {"image_id", "image", "label", "prediction", "probability"}


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The rows of ``test_predictions.csv``.

    Attributes:
        lesion_ids: '' where unknown.
        labels: True class indices.
        probabilities: Of each class, ``(N, C)``.
    """

    lesion_ids: list[str]
    labels: np.ndarray
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a run folder; None or empty where an optional file is missing.

    Attributes:
        folder: The folder.
        config: Complete, with today's names of fields.
        evaluation: ``evaluation/test.json``, with today's names.
        log: Rows by kind, in step order.
        parts: Images in each part of the split.
        predictions: Of the test part.
        cases: Arrays of the cases to show.
    """

    folder: Path
    config: ConfigDict
    evaluation: Mapping[str, Any]
    log: Mapping[str, list[dict[str, Any]]]
    parts: Mapping[str, int]
    predictions: Predictions | None
    cases: Mapping[str, np.ndarray] | None

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Of the test part, see `jaxattn.metrics.classification`."""
        return self.evaluation["metrics"]

    @property
    def class_names(self) -> list[str]:
        """The classes in index order."""
        return list(self.metrics["per_class"])

    @property
    def data_name(self) -> str:
        """The data set that was evaluated on; '' if unknown."""
        return str(self.evaluation.get("dataset", ""))


def load(folder: Path) -> Run:
    """Reads a run folder.

    Raises:
        InputError: A required file is missing, or a file is damaged.
    """
    config = _read_config(folder / "config.json", f"{TRAIN}{folder}")
    evaluation_path = folder / "evaluation" / "test.json"
    evaluation = _read_json(evaluation_path, f"{EVALUATE}{folder}")
    evaluation = {_OLD_NAMES.get(name, name): value for name, value in evaluation.items()}
    if not evaluation.get("metrics", {}).get("per_class"):
        raise invalid(str(evaluation_path), "an evaluation with metrics.per_class", "none")
    names = list(evaluation["metrics"]["per_class"])
    predictions_path = folder / "evaluation" / "test_predictions.csv"
    predictions = _read_predictions(predictions_path, names)
    images = evaluation["metrics"]["n"]
    if predictions and len(predictions.labels) != images:
        raise invalid(
            str(predictions_path),
            f"{images} rows, the images of {evaluation_path}",
            len(predictions.labels),
        )
    return Run(
        folder=folder,
        config=config,
        evaluation=evaluation,
        log=_read_log(folder / "log.jsonl"),
        parts=_read_parts(folder / "split.csv"),
        predictions=predictions,
        cases=_read_cases(folder / "evaluation" / "test_cases.npz"),
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


def _read_json(path: Path, command: str) -> dict[str, Any]:
    if not path.is_file():
        raise invalid(str(path), f"the file that {command} writes", "no file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise invalid(str(path), "JSON", f"a damaged file ({error})") from error
    if not isinstance(content, dict):
        raise invalid(str(path), "a JSON object", type(content).__name__)
    return content


def _read_config(path: Path, command: str) -> ConfigDict:
    return configs.read(json.dumps(_read_json(path, command)))


def _read_log(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows per kind in step order; a step that a resumed run logged again counts once, the last."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for line_number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.setdefault(row["kind"], {})[row["step"]] = row
        except (ValueError, KeyError, TypeError) as error:
            if line_number == len(lines):
                break  # a killed run leaves half a line
            raise invalid(
                f"{path}, line {line_number}", "a JSON object with kind and step", repr(line[:60])
            ) from error
    return {kind: [steps[step] for step in sorted(steps)] for kind, steps in rows.items()}


def _read_parts(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        counts = collections.Counter(row.get("split") for row in csv.DictReader(file))
    return {part: counts[part] for part in ("train", "validation", "test") if counts[part]}


def _read_predictions(path: Path, names: Sequence[str]) -> Predictions | None:
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    wanted = ["image_id", "lesion_id", "label", *(f"p_{name}" for name in names)]
    absent = [column for column in wanted if column not in (reader.fieldnames or ())]
    if absent:
        raise invalid(str(path), f"columns {', '.join(wanted)}", f"none of {', '.join(absent)}")
    labels = [class_index(f"{path}, label", row["label"], names) for row in rows]
    try:
        probabilities = [[float(row[f"p_{name}"]) for name in names] for row in rows]
    except (ValueError, TypeError) as error:
        raise invalid(str(path), "probabilities", error) from error
    return Predictions(
        lesion_ids=[row["lesion_id"] for row in rows],
        labels=np.array(labels, np.int64),
        probabilities=np.array(probabilities, np.float64).reshape(-1, len(names)),
    )


def _read_cases(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        with np.load(path) as archive:
            cases = dict(archive)
    except (ValueError, zipfile.BadZipFile) as error:
        raise invalid(str(path), "an NPZ file", f"a damaged file ({error})") from error
    absent = _CASES - set(cases)
    if absent:
        raise invalid(
            str(path), f"arrays {', '.join(sorted(_CASES))}", f"none of {', '.join(sorted(absent))}"
        )
    return cases
