"""The section on other data sets that a run was evaluated on."""

import json
from pathlib import Path
from typing import Any

from jaxattn.evaluation import external
from jaxattn.metrics import number
from jaxattn.reading import reading

_HEADINGS = ("images", "balanced accuracy", "accuracy", "macro AUC")


def section(evaluations: Path) -> dict[str, Any] | None:
    """A table for each other data set, all images and without those that the run knows.

    Args:
        evaluations: The folder of a run's evaluations.

    Returns:
        ``headings``, and ``data``: a name, rows and notes for each; None if there is none.

    Raises:
        InputError: A result is damaged.
    """
    found = []
    for path in sorted(evaluations.glob("*.json")):
        with reading(path, "a result that python -m jaxattn.evaluate wrote"):
            result = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(result, dict) or not result.get("external"):
                continue
            rows = [("all images", _cells(result["images"], result["metrics"]))]
            for which, label in (
                ("trained", "without those that training or validation knew"),
                ("own", "without those of the run's data set"),
            ):
                without = result[f"without_{which}"]
                if without:
                    rows.append((label, _cells(without["images"], without["metrics"])))
            classes = result["classes"]["name"] or "as they are"
            title = f"{result['split']}, classes {classes}"
            found.append({"name": title, "rows": rows, "notes": external.describe(result)})
    return {"headings": _HEADINGS, "data": found} if found else None


def _cells(images: int, metrics: dict[str, Any] | None) -> list[tuple[str, None]]:
    values: list[Any] = [None] * 3
    if metrics is not None:
        values = [metrics["balanced_accuracy"], metrics["accuracy"], metrics["macro"]["auc"]]
    return [(f"{int(images):,}", None), *((number(value), None) for value in values)]
