"""Reads the folder of a run."""

import collections
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxattn import config as configs
from jaxattn import config_rules
from jaxattn.errors import InputError, invalid
from jaxattn.evaluation import predictions
from jaxattn.evaluation.predictions import Predictions
from jaxattn.reading import Node, parse_json, read_csv, read_json, reading
from jaxattn.report import evaluation as checks

EVALUATE = "python -m jaxattn.evaluate --run="
TRAIN = "python -m jaxattn.train --workdir="

#: Names in evaluations that older versions wrote.
_OLD_NAMES = {"positive": "target", "prior_exponent": "logit_adjustment"}


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
    if not evaluation.get("metrics"):
        raise invalid(str(evaluation_path), "an evaluation with metrics.per_class", "none")
    checks.check(Node(evaluation_path, "", evaluation))
    names = list(evaluation["metrics"]["per_class"])
    with reading(evaluation_path, "the settings of an evaluation"):
        config.evaluation.update(evaluation.get("settings") or {})
        config_rules.check(configs.flatten(config.to_dict()))
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
        cases=checks.read_cases(results / "test_cases.npz"),
    )


def _read_json(path: Path, command: str) -> dict[str, Any]:
    if not path.is_file():
        raise invalid(str(path), f"the file that {command} writes", "no file")
    return read_json(path).object()


def _read_config(path: Path, command: str) -> ConfigDict:
    with reading(path, "the JSON that training wrote"):
        return configs.read(json.dumps(_read_json(path, command)))


def _read_log(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows per kind in step order; a step that a resumed run logged again counts once, the last."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    lines: list[str] = []
    if path.is_file():
        with reading(path, "the log that training wrote"):
            lines = path.read_text(encoding="utf-8").split("\n")
    while lines and not lines[-1]:
        lines.pop()
    for line_number, line in enumerate(lines, start=1):
        try:
            row = parse_json(path, line, "a JSON object with kind and step", f"line {line_number}")
            kind, step = row["kind"].text(), row["step"].whole()
            for name, value in row.entries().items():
                if name != "kind" and value.value is not None and value.value == value.value:
                    value.number()
        except InputError:
            if line_number == len(lines):
                break  # a killed run leaves half a line
            raise
        rows.setdefault(kind, {})[step] = row.object()
    return {kind: [steps[step] for step in sorted(steps)] for kind, steps in rows.items()}


def _read_parts(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    counts = collections.Counter(row.get("split") for row in read_csv(path)[1])
    return {part: counts[part] for part in ("train", "validation", "test") if counts[part]}


def _read_training(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    counts = read_json(path, "the class names that training wrote")["training_images"]
    return {name: count.whole() for name, count in counts.entries().items()}
