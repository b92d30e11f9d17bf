"""The data of each section of the report; the template lays them out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxattn import compare, reference_results
from jaxattn.config import flatten
from jaxattn.data import leaks
from jaxattn.errors import InputError
from jaxattn.metrics import AGGREGATES, FURTHER, MEASURES, has_rows, number, paired_rows
from jaxattn.report import cases, charts, others
from jaxattn.report.loading import EVALUATE, TRAIN, Run

_LABELS = {
    "auc": "AUC",
    "f1": "F1",
    "npv": "NPV",
    "average_precision": "AP",
    "partial_auc": "partial AUC",
    "balanced_accuracy": "balanced accuracy",
    "micro_auc": "micro AUC",
    "specificity": "specificity",
}


def page(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the template shows."""
    names = compare.names([run.folder for run in runs]) if len(runs) > 1 else [runs[0].folder.name]
    shown = [
        _run(run, name, f"run{i}") for i, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    title = shown[0]["title"] if len(runs) == 1 else f"{len(runs)} runs side by side"
    return {
        "title": title,
        "several": len(runs) > 1,
        "runs": shown,
        "overview": overview(runs, names) | {"facts": _side_by_side(shown)},
        "comparison": comparison(runs, names) if len(runs) > 1 else None,
        "differing": differing(runs) if len(runs) > 1 else None,
    }


def _run(run: Run, name: str, anchor: str) -> dict[str, Any]:
    reference = cases.reference_of(run)
    split = run.evaluation.get("split", "test")
    return {
        "name": name,
        "anchor": anchor,
        "title": f"{run.config.model.name} on {run.data_name or 'unknown data'}, {split} split",
        "folder": run.folder.name,
        "result": result(run),
        "data": data(run),
        "per_class": per_class(run, reference),
        "further": further(run),
        "target": target(run, reference),
        "points": points(run),
        "confusion": confusion(run),
        "curves": curves(run),
        "calibration": calibration(run),
        "subgroups": subgroups(run),
        "learning": learning(run),
        "attention": cases.attention(run, reference),
        "others": others.section(run.folder / "evaluation"),
        "settings": settings(run),
    }


def overview(runs: Sequence[Run], names: Sequence[str]) -> dict[str, Any]:
    """The main measures of every run, with intervals."""
    measures = list(compare.MEASURES.items())
    rows = []
    for run, name in zip(runs, names, strict=True):
        bounds = run.evaluation.get("intervals") or {}
        cells = [
            (number(_at(run.metrics, path)), _bounds(_at(bounds, path))) for _, path in measures
        ]
        rows.append((name, cells))
    methods = {(run.evaluation.get("intervals") or {}).get("method") for run in runs}
    return {
        "headings": [name for name, _ in measures],
        "rows": rows,
        "method": next(iter(methods)) if len(methods) == 1 else None,
    }


def _side_by_side(shown: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """The facts of each run, a row each."""
    facts = [run["result"]["facts"] for run in shown]
    rows = dict.fromkeys(name for each in facts for name in each)
    return [(name, [each.get(name, "-") for each in facts]) for name in rows]


def comparison(runs: Sequence[Run], names: Sequence[str]) -> dict[str, Any]:
    """Paired differences, or why there are none."""
    found = {name: run.predictions for run, name in zip(runs, names, strict=True)}
    if None in found.values():
        return {"impossible": "a run has no predictions"}
    resamples = min(run.config.evaluation.resamples for run in runs)
    try:
        result = compare.compare(compare.aligned(found), resamples)  # type: ignore[arg-type]
    except InputError as error:
        return {"impossible": str(error)}
    pairs = []
    for pair in result["pairs"]:
        rows = [
            (name, _change(row), _p(row["p"]), "") for name, row in pair["measures"].items()
        ] + [
            (f"AUC {name}", _change(row), _p(row["p"]), _p(row["p_holm"]))
            for name, row in pair["auc"].items()
        ]
        mcnemar = pair["mcnemar"] | {"p": _p(pair["mcnemar"]["p"])}
        pairs.append({**pair, "rows": rows, "mcnemar": mcnemar})
    return {"pairs": pairs, "method": result["method"], "images": result["images"]}


def differing(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The fields of the configs that are not the same in all runs."""
    configs = [flatten(run.config.to_dict()) for run in runs]
    fields = sorted(set().union(*configs))
    values = [(field, [str(config.get(field, "-")) for config in configs]) for field in fields]
    return [(field, row) for field, row in values if len(set(row)) > 1]


def result(run: Run) -> dict[str, Any]:
    """The three main numbers, what they were measured on, provenance, and warnings."""
    metrics, evaluation = run.metrics, run.evaluation
    bounds = evaluation.get("intervals") or {}
    lesions = set(run.predictions.lesion_ids) if run.predictions else {""}
    facts = {
        "model": run.config.model.name,
        "data": run.data_name or "unknown",
        "split": evaluation.get("split", "test"),
        "images": metrics["n"],
        "lesions": "unknown" if "" in lesions else len(lesions),
        "checkpoint": f"{evaluation.get('checkpoint', '?')}, step {evaluation.get('step', '?')}",
    }
    if run.config.metadata.fields:
        facts["sees beside the image"] = ", ".join(run.config.metadata.fields)
    for name in ("parameters", "date", "commit"):
        if evaluation.get(name):
            value = evaluation[name]
            facts[name] = f"{value:,}" if isinstance(value, int) else value
    duration = _duration(run)
    if duration:
        facts["training steps took"] = duration
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
    tiles = (
        ("balanced accuracy", ("balanced_accuracy",)),
        ("accuracy", ("accuracy",)),
        ("macro AUC, one-vs-rest", ("macro", "auc")),
    )
    return {
        "tiles": [(n, number(_at(metrics, path)), _bounds(_at(bounds, path))) for n, path in tiles],
        "warnings": warnings,
        "facts": facts,
        "method": bounds.get("method"),
    }


def data(run: Run) -> dict[str, Any]:
    """Images of each part and class, and how much of the test part training knows."""
    parts = run.evaluation.get("parts") or {}
    listed = {
        name: f"{row['images']} images, {row['lesions']} lesions" for name, row in parts.items()
    } or {name: f"{count} images" for name, count in run.parts.items()}
    measured = run.evaluation.get("measured_leak")
    check = None
    if measured:
        clean = not any(measured.values())
        of_pixels = "same_pixels" in measured
        check = {
            "clean": clean,
            "text": "No lesion and no image of the test part is in training"
            f"{', under any name, nor a near-duplicate' if of_pixels else ''}."
            if clean
            else f"Training has the lesion of {measured['lesion']:.1%} of the test images and "
            f"{measured['image']:.1%} of the images themselves{_copies(measured)}.",
        }
    split = run.config.split
    rule = f"{split.strategy}{f' from {split.file}' if split.file else ''}, seed {split.seed}"
    support = {name: row["support"] for name, row in run.metrics["per_class"].items()}
    return {
        "rule": rule,
        "parts": listed,
        "classes": [(n, run.training.get(n, "-"), count) for n, count in support.items()],
        "check": check,
    }


def _copies(measured: Mapping[str, float]) -> str:
    """What training has of the test images under other names."""
    if "same_pixels" not in measured:
        return ""
    exact, near = measured["same_pixels"], measured["near_duplicate"]
    return f"; under any name the pixels of {exact:.1%}, and a near-duplicate of {near:.1%}"


def per_class(run: Run, reference: Mapping[str, Any] | None) -> dict[str, Any]:
    """Measures per class and their averages, beside a paper's where one reports them."""
    beside = reference if has_rows(reference) else None
    bounds = run.evaluation.get("intervals") or {}
    rows = []
    for name, ours, theirs in paired_rows(run.metrics, beside):
        average = name in ("macro", "weighted")
        own = bounds.get(name) if average else (bounds.get("per_class") or {}).get(name)
        cells = [
            (
                number(ours[m]),
                _bounds((own or {}).get(m)),
                number(theirs.get(m)) if beside else None,
            )
            for m in MEASURES
        ]
        support = (beside or {}).get("n") if average else theirs.get("support")
        paper = ("-" if support is None else support) if beside else None
        cells.append((ours["support"], "", paper))
        label = f"{name} average" if average else name
        rows.append({"label": label, "average": average, "cells": cells})
    aggregates = {}
    for key in AGGREGATES:
        paper = _with_deviation(reference, key) if reference else None
        label = "MC-specificity" if key == "specificity" else _LABELS.get(key, key)
        aggregates[label] = (number(run.metrics.get(key)), _bounds(bounds.get(key)), paper)
    return {
        "headings": [*(_LABELS.get(m, m) for m in MEASURES), "support"],
        "beside": beside is not None,
        "rows": rows,
        "aggregates": aggregates,
        "reference": reference_results.note(reference) if reference else None,
        "trust": reference["trust"] if reference else None,
        "comparable": reference_results.comparable(run.config, reference) if reference else None,
        "differences": reference_results.differences(run.config, reference) if reference else [],
    }


def further(run: Run) -> dict[str, Any] | None:
    """Further measures of each class; None for evaluations of older versions."""
    if not all("npv" in row for row in run.metrics["per_class"].values()):
        return None
    bounds = run.evaluation.get("intervals") or {}
    at = run.metrics["at"]
    named = {
        "sensitivity_at_specificity": f"sensitivity at {at['specificity']:.0%} specificity",
        "specificity_at_sensitivity": f"specificity at {at['sensitivity']:.0%} sensitivity",
    }
    rows = []
    for name, ours, _ in paired_rows(run.metrics):
        average = name in ("macro", "weighted")
        own = bounds.get(name) if average else (bounds.get("per_class") or {}).get(name)
        cells = [(number(ours[m]), _bounds((own or {}).get(m))) for m in FURTHER]
        rows.append({"label": name, "average": average, "cells": cells})
    return {"headings": [named.get(m, _LABELS.get(m, m)) for m in FURTHER], "rows": rows}


def target(run: Run, reference: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How the target class is detected; None if the config names none."""
    found = run.evaluation.get("target")
    if not found:
        return None
    theirs = (reference or {}).get("target", {})
    rows = []
    for key, label in (("at_threshold", "given"), ("at_sensitivity", "chosen on these images")):
        point = found[key] or {}
        fields = ("threshold", "recall", "precision", "specificity", "npv")
        rows.append((label, [number(point.get(field)) for field in fields]))
    return {
        "class": found["class"],
        "measures": {
            name: (number(found[key]), "", number(theirs[key]) if key in theirs else None)
            for key, name in (("auc", "AUC"), ("average_precision", "average precision"))
        },
        "rows": rows,
        "printed": (reference or {}).get("printed"),
    }


def points(run: Run) -> dict[str, Any] | None:
    """Operating points chosen on validation, there and on the part that is shown."""
    found = run.evaluation.get("operating_points")
    if not found:
        return None
    rows = []
    for name, kinds in found.items():
        for kind, point in (kinds or {}).items():
            bounds = point["intervals"]
            there, wanted = point["where_chosen"], f"{point['wanted']:.0%} {kind}"
            cells = [(number(point["threshold"]), "")]
            cells += [(number(there[m]), "") for m in ("recall", "specificity")]
            cells += [
                (number(point[m]), _bounds(bounds.get(m)))
                for m in ("recall", "specificity", "precision", "npv")
            ]
            rows.append((f"{name}, {wanted}", cells))
    part = run.evaluation.get("split", "test")
    return {
        "rows": rows,
        "part": part,
        "unknown": [name for name, kinds in found.items() if not kinds],
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


def curves(run: Run) -> dict[str, Any]:
    """ROC and precision-recall curves of each class against all others, and the reliability."""
    if run.predictions is None:
        return _missing("evaluation/test_predictions.csv", f"{EVALUATE}{run.folder}")
    classes = run.metrics["per_class"]
    pictures = [
        charts.roc_curves(run.predictions, classes),
        charts.precision_recall_curves(run.predictions, classes),
    ]
    measured = run.metrics.get("calibration")
    if measured:
        scaled = (run.evaluation.get("temperature") or {}).get("calibration", {})
        pictures.append(
            charts.reliability_curve(measured["reliability"], scaled.get("reliability", ()))
        )
    return {
        "pictures": pictures,
        "left_out": [name for name, row in classes.items() if row["auc"] is None],
    }


def calibration(run: Run) -> dict[str, Any] | None:
    """NLL, Brier score and ECE, as they are and with the temperature."""
    measured = run.metrics.get("calibration")
    if not measured:
        return None
    bounds = (run.evaluation.get("intervals") or {}).get("calibration", {})
    fitted = run.evaluation.get("temperature") or {}
    scaled = fitted.get("calibration", {})
    rows = [
        (label, f"{measured[key]:.3f}", _bounds(bounds.get(key)), number(scaled.get(key)))
        for key, label in (("nll", "NLL"), ("brier", "Brier score"), ("ece", "ECE, 15 bins"))
    ]
    return {"rows": rows, "temperature": fitted.get("temperature"), "images": fitted.get("images")}


def subgroups(run: Run) -> list[dict[str, Any]]:
    """Metrics by subgroup."""
    tables = []
    for variable, values in (run.evaluation.get("subgroups") or {}).items():
        rows = []
        for value, row in values.items():
            cells = [
                (number(row[m]), _bounds(row["intervals"].get(m)))
                for m in ("accuracy", "balanced_accuracy", "macro_auc")
            ]
            counts = (row["images"], row["lesions"], row["classes"])
            rows.append({"value": value, "counts": counts, "few": row["few"], "cells": cells})
        tables.append({"variable": variable, "rows": rows})
    return tables


def learning(run: Run) -> dict[str, Any]:
    """Loss and accuracies over steps."""
    if not run.log:
        return _missing("log.jsonl", f"{TRAIN}{run.folder}")
    train, validation = run.log.get("train", []), run.log.get("validation", [])
    step, metric = run.evaluation.get("step"), run.config.best
    known = [row for row in validation if row.get(metric) is not None]
    choose = min if metric == "loss" else max
    best = choose(known, key=lambda row: row[metric]) if known else None
    return {
        "pictures": [
            charts.loss_curve(train, validation, step, _weighted(run)),
            charts.accuracy_curve(train, validation, step),
        ],
        "checkpoint": run.evaluation.get("checkpoint", "?"),
        "step": "?" if step is None else step,
        "best": (number(best[metric]), best["step"]) if best else None,
        "metric": metric.replace("_", " "),
        "weighted": _weighted(run),
    }


def settings(run: Run) -> dict[str, Any]:
    """The configuration, flattened, and the software and device of the evaluation."""
    versions = {"device": run.evaluation.get("device", "unknown")}
    return {
        "config": flatten(run.config.to_dict()),
        "versions": versions | run.evaluation.get("versions", {}),
    }


def _weighted(run: Run) -> str:
    """What the training loss holds beside plain cross-entropy; '' if nothing."""
    loss = run.config.loss
    parts = {
        "class weights": bool(loss.class_weight_exponent or loss.class_weights.to_dict()),
        "diagnosis-guided weights": bool(loss.diagnosis_guided),
        "focal weights": bool(loss.focal_gamma),
        "label smoothing": bool(loss.label_smoothing),
        "the loss of maps": bool(loss.maps.weights.to_dict()),
        "a balanced sampler": run.config.sampler.name != "none",
    }
    return ", ".join(name for name, used in parts.items() if used)


def _duration(run: Run) -> str:
    """How long the logged training steps took, without compiling and validating; '' if unknown."""
    seconds, last = 0.0, 0
    for row in run.log.get("train", []):
        if row.get("images_per_second"):
            seconds += (row["step"] - last) * run.config.batch_size / row["images_per_second"]
        last = row["step"]
    if not seconds:
        return ""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} hours" if hours >= 2 else f"{minutes:.1f} minutes"


def _with_deviation(reference: Mapping[str, Any], key: str) -> str:
    deviation = reference.get("deviation", {}).get(key)
    spread = "" if deviation is None else f" ± {number(deviation)}"
    return f"{number(reference.get(key))}{spread}"


def _at(nested: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The value at a path, None where an older version wrote none."""
    value: Any = nested
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _bounds(interval: Sequence[float] | None) -> str:
    return f"{number(interval[0])}–{number(interval[1])}" if interval else ""


def _change(row: Mapping[str, Any]) -> tuple[str, str]:
    if row["difference"] is None:
        return "-", ""
    bounds = row["interval"]
    spread = f"{bounds[0]:+.3f} to {bounds[1]:+.3f}" if bounds else ""
    return f"{row['difference']:+.3f}", spread


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< .001" if value < 0.001 else f"{value:.3f}"


def _missing(file: str, command: str) -> dict[str, Any]:
    return {"missing": {"file": file, "command": command}}
