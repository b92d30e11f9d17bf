"""Reads the folder of a run."""

import collections
import csv
import dataclasses
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxattn import config as configs
from jaxattn import predictions
from jaxattn.errors import invalid
from jaxattn.predictions import Predictions

EVALUATE = "python -m jaxattn.evaluate --run="
TRAIN = "python -m jaxattn.train --workdir="

#: Names in evaluations that older versions wrote.
_OLD_NAMES = {"positive": "target", "prior_exponent": "logit_adjustment"}
_CASES = {"image_id", "image", "label", "prediction", "probability"}


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a run folder; None or empty where an optional file is missing.

    Attributes:
        folder: The folder.
        config: Complete, with today's names of fields.
        evaluation: ``evaluation/test.json``, with today's names.
        log: Rows by kind, in step order.
        parts: Images in each part of the split.
        training: Training images of each class.
        predictions: Of the test part.
        cases: Arrays of the cases to show.
    """

    folder: Path
    config: ConfigDict
    evaluation: Mapping[str, Any]
    log: Mapping[str, list[dict[str, Any]]]
    parts: Mapping[str, int]
    training: Mapping[str, int]
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


def load(folder: Path, out: Path | None = None) -> Run:
    """Reads a run folder, and its evaluation if that lies elsewhere, in ``out``.

    Raises:
        InputError: A required file is missing, or a file is damaged.
    """
    config = _read_config(folder / "config.json", f"{TRAIN}{folder}")
    results = (out or folder) / "evaluation"
    evaluation_path = results / "test.json"
    evaluation = _read_json(evaluation_path, f"{EVALUATE}{folder}")
    evaluation = {_OLD_NAMES.get(name, name): value for name, value in evaluation.items()}
    if not evaluation.get("metrics", {}).get("per_class"):
        raise invalid(str(evaluation_path), "an evaluation with metrics.per_class", "none")
    names = list(evaluation["metrics"]["per_class"])
    config.evaluation.update(evaluation.get("settings") or {})
    predictions_path = results / "test_predictions.csv"
    found = predictions.read(predictions_path, names) if predictions_path.is_file() else None
    images = evaluation["metrics"]["n"]
    if found and len(found) != images:
        raise invalid(
            str(predictions_path),
            f"{images} rows, the images of {evaluation_path}",
            len(found),
        )
    return Run(
        folder=folder,
        config=config,
        evaluation=evaluation,
        log=_read_log(folder / "log.jsonl"),
        parts=_read_parts(folder / "split.csv"),
        training=_read_training(folder / "classes.json"),
        predictions=found,
        cases=_read_cases(results / "test_cases.npz"),
    )


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


def _read_training(path: Path) -> dict[str, int]:
    counts = _read_json(path, "").get("training_images") if path.is_file() else {}
    if not isinstance(counts, dict):
        raise invalid(f"{path}, training_images", "images by class", repr(counts))
    return counts


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
