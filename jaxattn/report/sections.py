"""The data of each section of the report; the template lays them out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxattn import overlays, reference_results
from jaxattn.config import flatten
from jaxattn.data import leaks
from jaxattn.metrics import AGGREGATES, MEASURES, has_rows, number, paired_rows
from jaxattn.predictions import class_index
from jaxattn.report import charts
from jaxattn.report.loading import EVALUATE, TRAIN, Run

_LABELS = {"auc": "AUC", "f1": "F1"}


def page(run: Run) -> dict[str, Any]:
    """Everything that the template shows."""
    split = run.evaluation.get("split", "test")
    return {
        "title": f"{run.config.model.name} on {run.data_name or 'unknown data'}, {split} split",
        "folder": run.folder.name,
        "result": result(run),
        "per_class": per_class(run),
        "target": target(run),
        "confusion": confusion(run),
        "roc": roc(run),
        "learning": learning(run),
        "attention": attention(run),
        "settings": settings(run),
    }


def result(run: Run) -> dict[str, Any]:
    """The three main numbers, what they were measured on, and warnings."""
    metrics, evaluation = run.metrics, run.evaluation
    lesions = set(run.predictions.lesion_ids) if run.predictions else {""}
    facts = {
        "model": run.config.model.name,
        "data": run.data_name or "unknown",
        "split": evaluation.get("split", "test"),
        "images": metrics["n"],
        "lesions": "unknown" if "" in lesions else len(lesions),
        "checkpoint": f"{evaluation.get('checkpoint', '?')}, step {evaluation.get('step', '?')}",
    }
    if run.parts:
        facts["images by part"] = ", ".join(f"{part} {n}" for part, n in run.parts.items())
    if evaluation.get("logit_adjustment"):
        exponent = evaluation["logit_adjustment"]
        facts["predicted class"] = f"largest probability / (share in training)^{exponent:g}"
    warnings = []
    absent = metrics.get("absent_classes") or []
    if absent:
        warnings.append(
            f"No example of {', '.join(absent)} in this split: averages are over the other classes."
        )
    if evaluation.get("leak"):
        leak = leaks.warning(evaluation["leak"], evaluation["measured_leak"])
        warnings.append(f"These scores do not estimate performance on new patients. {leak}.")
    return {
        "tiles": [
            ("balanced accuracy", number(metrics["balanced_accuracy"])),
            ("accuracy", number(metrics["accuracy"])),
            ("macro AUC, one-vs-rest", number(metrics["macro"]["auc"])),
        ],
        "warnings": warnings,
        "facts": facts,
    }


def per_class(run: Run) -> dict[str, Any]:
    """Measures per class and their averages, beside a paper's where one reports them."""
    reference = _reference(run)
    beside = reference if has_rows(reference) else None
    rows = []
    for name, ours, theirs in paired_rows(run.metrics, beside):
        average = name in ("macro", "weighted")
        cells = [(number(ours[m]), number(theirs.get(m)) if beside else None) for m in MEASURES]
        support = (beside or {}).get("n") if average else theirs.get("support")
        cells.append((ours["support"], ("-" if support is None else support) if beside else None))
        label = f"{name} average" if average else name
        rows.append({"label": label, "average": average, "cells": cells})
    aggregates = {}
    for key in AGGREGATES:
        paper = _with_deviation(reference, key) if reference else None
        label = key.replace("_", " ").replace("auc", "AUC")
        aggregates[label] = (number(run.metrics.get(key)), paper)
    return {
        "headings": [*(_LABELS.get(m, m) for m in MEASURES), "support"],
        "beside": beside is not None,
        "rows": rows,
        "aggregates": aggregates,
        "reference": reference_results.note(reference) if reference else None,
        "trust": reference["trust"] if reference else None,
    }


def target(run: Run) -> dict[str, Any] | None:
    """How the target class is detected; None if the config names none."""
    found = run.evaluation.get("target")
    if not found:
        return None
    theirs = (_reference(run) or {}).get("target", {})
    rows = []
    for key, label in (("at_threshold", "given"), ("at_sensitivity", "for the sensitivity")):
        point = found[key] or {}
        fields = ("threshold", "recall", "precision", "specificity")
        rows.append((label, [number(point.get(field)) for field in fields]))
    return {
        "class": found["class"],
        "measures": {
            name: (number(found[key]), number(theirs[key]) if key in theirs else None)
            for key, name in (("auc", "AUC"), ("average_precision", "average precision"))
        },
        "rows": rows,
    }


def confusion(run: Run) -> dict[str, Any]:
    """Counts of truth against prediction, and their share of the true class."""
    counts = np.array(run.metrics["confusion"]["counts"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = run.metrics["confusion"]["classes"]
    return {
        "classes": names,
        "rows": [
            (name, [(int(count), float(share)) for count, share in zip(*row, strict=True)])
            for name, *row in zip(names, counts, shares, strict=True)
        ],
    }


def roc(run: Run) -> dict[str, Any]:
    """ROC curves of each class against all others."""
    if run.predictions is None:
        return _missing("evaluation/test_predictions.csv", f"{EVALUATE}{run.folder}")
    classes = run.metrics["per_class"]
    return {
        "picture": charts.roc_curves(run.predictions, classes),
        "left_out": [name for name, row in classes.items() if row["auc"] is None],
    }


def learning(run: Run) -> dict[str, Any]:
    """Loss and accuracies over steps."""
    if not run.log:
        return _missing("log.jsonl", f"{TRAIN}{run.folder}")
    train, validation = run.log.get("train", []), run.log.get("validation", [])
    step = run.evaluation.get("step")
    known = [row for row in validation if row.get("balanced_accuracy") is not None]
    best = max(known, key=lambda row: row["balanced_accuracy"], default=None)
    return {
        "pictures": [
            charts.loss_curve(train, validation, step),
            charts.accuracy_curve(train, validation, step),
        ],
        "checkpoint": run.evaluation.get("checkpoint", "?"),
        "step": "?" if step is None else step,
        "best": (number(best["balanced_accuracy"]), best["step"]) if best else None,
    }


def attention(run: Run) -> dict[str, Any]:
    """Where the model looked, for confident hits and misses."""
    if run.cases is None:
        return _missing("evaluation/test_cases.npz", f"{EVALUATE}{run.folder}")
    names, cases = run.class_names, run.cases
    maps = {key.removeprefix("map/"): cases[key] for key in sorted(cases) if key.startswith("map/")}
    blend = run.config.evaluation.overlay.to_dict()
    groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for i in range(len(cases["image_id"])):
        truth, predicted = (
            names[class_index(f"test_cases.npz, {key}", cases[key][i], names)]
            for key in ("label", "prediction")
        )
        groups[truth == predicted].append(
            {
                "image_id": cases["image_id"][i],
                "truth": truth,
                "predicted": predicted,
                "hit": truth == predicted,
                "probability": f"{float(cases['probability'][i]):.3f}",
                "views": _views(cases, maps, i, blend),
            }
        )
    found = run.evaluation.get("jaccard") or {}
    theirs = ((_reference(run) or {}).get("jaccard") or {}).get("mean", {})
    return {
        "maps": list(maps),
        "masks": "mask" in cases,
        "blend": blend,
        "groups": [
            ("Correct, most confident of each class", groups[True]),
            ("Wrong, most confident of each class", groups[False]),
        ],
        "jaccard": {
            name: (number(value), number(theirs[name]) if name in theirs else None)
            for name, value in found.get("mean", {}).items()
        },
        "masked": found.get("images"),
    }


def settings(run: Run) -> dict[str, Any]:
    """The configuration, flattened, and the software and device of the evaluation."""
    versions = {"device": run.evaluation.get("device", "unknown")}
    return {
        "config": flatten(run.config.to_dict()),
        "versions": versions | run.evaluation.get("versions", {}),
    }


def _reference(run: Run) -> dict[str, Any] | None:
    """The paper's result for this run; None if there is none for its classes."""
    found = reference_results.for_run(run.config, run.data_name)
    if found and "per_class" in found and set(found["per_class"]) != set(run.class_names):
        return None
    return found


def _with_deviation(reference: Mapping[str, Any], key: str) -> str:
    deviation = reference.get("deviation", {}).get(key)
    spread = "" if deviation is None else f" ± {number(deviation)}"
    return f"{number(reference.get(key))}{spread}"


def _views(
    cases: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    i: int,
    blend: Mapping[str, Any],
) -> list[tuple[charts.Picture, str]]:
    """Pictures and captions of a case: the image, and of each map its overlay and itself."""
    image = cases["image"][i]
    has_mask = "mask" in cases and cases["mask"][i].any()

    def outlined(picture: np.ndarray) -> np.ndarray:
        return overlays.outline(picture, cases["mask"][i]) if has_mask else picture

    views = [(charts.photo(outlined(image), "the image"), "image")]
    for name, stack in maps.items():
        over = outlined(overlays.overlay(image, stack[i], **blend))
        height, width = stack.shape[-2:]
        views += [
            (charts.photo(over, f"attention {name} over the image"), name),
            (
                charts.blocks(stack[i], image.shape[:2], f"attention map {name}"),
                f"{height}×{width}, peak {overlays.peak(stack[i]):.1f}",
            ),
        ]
    return views


def _missing(file: str, command: str) -> dict[str, Any]:
    return {"missing": {"file": file, "command": command}}
