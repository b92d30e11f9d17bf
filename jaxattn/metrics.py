"""What a classifier's predictions are worth: per class, averaged, and beside published numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sklearn.metrics
from jaxtyping import Bool, Float, Int, Shaped

from jaxattn.errors import InputError

MEASURES = ("precision", "recall", "f1", "auc")
"""The per-class measures, in the order in which tables show them."""

# Softmax in bfloat16 may leave [0, 1] by a rounding error; logits leave it by far more.
_PROBABILITY_SLACK = 1e-2


def decide(
    probabilities: Float[np.ndarray, "N C"],
    shares: Float[np.ndarray, " C"],
    exponent: float = 0.0,
) -> Int[np.ndarray, " N"]:
    """The class of the largest ``probability / share^exponent``; the lowest index wins a tie.

    With the share of each class among the training examples and an exponent of 1 these are the
    decisions of the highest balanced accuracy, if the probabilities are right (Menon et al. 2021,
    "Long-tail learning via logit adjustment", equation 9, applied after training). A loss weighted
    by ``share^-k`` has done a part k of it already, which leaves ``1 - k``.

    Args:
      probabilities: predicted probabilities, a row per example.
      shares: of the classes; a class of share 0 counts as the rarest of the others.
      exponent: 0 for the most probable class.

    Returns:
      Predicted class indices.
    """
    floor = shares[shares > 0].min()
    return (probabilities / np.maximum(shares, floor) ** exponent).argmax(axis=1)


def classification(
    labels: Int[np.ndarray, " N"],
    probabilities: Float[np.ndarray, "N C"],
    class_names: Sequence[str],
    predictions: Int[np.ndarray, " N"] | None = None,
) -> dict[str, Any]:
    """Measures predictions against the truth.

    With TP, FP and FN counted for one class against all others:

    - precision = TP / (TP + FP), 0 for a class that is never predicted;
    - recall = TP / (TP + FN);
    - f1 = 2 TP / (2 TP + FP + FN);
    - auc = the chance that a random example of the class has a higher probability for it than a
      random example of the other classes, ties counting one half (one-vs-rest area under the ROC
      curve); None where there is no example of the class or none of the others.

    A class without an example in ``labels`` has None for all four measures, is left out of the
    averages and is named in ``absent_classes``.

    Args:
      labels: true class indices in [0, C).
      probabilities: predicted probabilities in [0, 1], a row per example.
      class_names: the C names, in index order; C is at least 2.
      predictions: predicted class indices; without them the most probable class is predicted, and
        the lowest index wins a tie.

    Returns:
      A dict that JSON can hold:

      - ``n``: the number of examples.
      - ``per_class``: name -> {precision, recall, f1, auc, support}, support being the number of
        examples of the class.
      - ``macro``: the mean of each measure over the classes that have it.
      - ``weighted``: the mean of each measure over the classes that have it, weighted by support.
      - ``micro_auc``: the area under the ROC curve of all N×C (example, class) decisions pooled.
      - ``accuracy``: the fraction of examples predicted correctly.
      - ``balanced_accuracy``: the mean recall over the classes present (Gessert et al. 2019's
        MC-sensitivity, equation 1).
      - ``specificity``: the mean over these classes of TN / (TN + FP), TN being the examples that
        neither are of the class nor are called it (their MC-specificity); None where all examples
        are of one class.
      - ``confusion``: {classes, counts}, ``counts[truth][prediction]`` in the order of ``classes``.
      - ``absent_classes``: the names of the classes without an example.

    Raises:
      InputError: no examples, shapes that disagree, labels out of range, or probabilities that are
        not finite or not in [0, 1].
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    _check(labels, probabilities, class_names)
    indices = np.arange(len(class_names))
    if predictions is None:
        predictions = probabilities.argmax(axis=1)
    precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
        labels, predictions, labels=indices, zero_division=0
    )
    per_class: dict[str, dict[str, Any]] = {}
    for c, name in enumerate(class_names):
        values = (precision[c], recall[c], f1[c], _auc(labels == c, probabilities[:, c]))
        measured = [None if v is None or not support[c] else float(v) for v in values]
        per_class[name] = dict(zip(MEASURES, measured, strict=True)) | {"support": int(support[c])}
    macro = _averages(per_class, weighted=False)
    counts = sklearn.metrics.confusion_matrix(labels, predictions, labels=indices)
    return {
        "n": len(labels),
        "per_class": per_class,
        "macro": macro,
        "weighted": _averages(per_class, weighted=True),
        "micro_auc": _auc((labels[:, None] == indices).ravel(), probabilities.ravel()),
        "accuracy": float(np.mean(labels == predictions)),
        "balanced_accuracy": macro["recall"],
        "specificity": _specificity(counts),
        "confusion": {"classes": list(class_names), "counts": counts.tolist()},
        "absent_classes": [n for n, row in per_class.items() if not row["support"]],
    }


def detection(
    positive: Bool[np.ndarray, " N"],
    scores: Float[np.ndarray, " N"],
    threshold: float = 0.5,
    sensitivity: float = 0.9,
) -> dict[str, Any]:
    """Measures how one class is told from all others.

    Args:
      positive: whether an example is of the class.
      scores: its probability of the class, in [0, 1].
      threshold: examples with at least this score are called positive.
      sensitivity: the recall to be reached, in (0, 1].

    Returns:
      A dict that JSON can hold:

      - ``auc``: the area under the ROC curve; None unless there are examples of both kinds.
      - ``average_precision``: Σ (R_n − R_{n−1}) P_n over all thresholds, scikit-learn's
        ``average_precision_score``; None without positive examples.
      - ``at_threshold``: {threshold, recall, precision, specificity}. Recall is None without
        positive and specificity without negative examples; precision is 0 where none is called
        positive.
      - ``at_sensitivity``: likewise at the highest threshold with at least that recall; None
        without positive examples. Where scores are constant it calls every example positive.

    Raises:
      InputError: ``threshold`` or ``sensitivity`` is out of range.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"evaluation.threshold: {threshold} given, 0 to 1 wanted")
    if not 0 < sensitivity <= 1:
        raise InputError(f"evaluation.sensitivity: {sensitivity} given, above 0 to 1 wanted")
    found: dict[str, Any] = {
        "auc": _auc(positive, scores),
        "average_precision": None,
        "at_threshold": _operating_point(positive, scores, threshold),
        "at_sensitivity": None,
    }
    if positive.any():
        found["average_precision"] = float(
            sklearn.metrics.average_precision_score(positive, scores)
        )
        ranked = np.sort(scores[positive])[::-1]
        # Rounding must not ask for one example more: 0.7 of 10 is 7.000000000000001.
        wanted = int(np.ceil(sensitivity * len(ranked) - 1e-9))
        found["at_sensitivity"] = _operating_point(positive, scores, float(ranked[wanted - 1]))
    return found


def jaccard(single_map: Float[np.ndarray, "H W"], mask: Shaped[np.ndarray, "H W"]) -> float:
    """Jaccard index of a map, cut at one half, and a mask (Yan et al. 2019, section 3.3).

    Args:
      single_map: in [0, 1], as `jaxattn.overlays.heatmap` gives it; 1/2 and above is inside.
      mask: nonzero inside.

    Returns:
      Intersection over union; 1 where both are empty.
    """
    inside, wanted = single_map >= 0.5, np.asarray(mask) != 0
    union = (inside | wanted).sum()
    return float((inside & wanted).sum() / union) if union else 1.0


def table(metrics: Mapping[str, Any], published: Mapping[str, Any] | None = None) -> str:
    """Formats metrics as plain text, a row per class and per average.

    Args:
      metrics: what `classification` returned.
      published: an entry of `jaxattn.reference_results.DATTA2021`, shown beside each number;
        numbers that were not published are shown as ``-``.

    Returns:
      Lines of equal column widths without a trailing newline.
    """
    header = ["class"]
    for measure in MEASURES:
        header += [measure, "paper"] if published else [measure]
    rows = [[*header, "support"]]
    for name, ours, theirs in paired_rows(metrics, published):
        row = [name]
        for measure in MEASURES:
            row.append(number(ours[measure]))
            row += [number(theirs.get(measure))] if published else []
        rows.append([*row, str(ours["support"])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *aligned]))
    lines.append("")
    for key in ("accuracy", "balanced_accuracy", "specificity", "micro_auc"):
        beside = f"  (paper {number(published.get(key))})" if published else ""
        lines.append(f"{key.replace('_', ' ')} {number(metrics[key])}{beside}")
    if metrics["absent_classes"]:
        lines.append(f"no example of: {', '.join(metrics['absent_classes'])}")
    if published:
        lines.append(f"paper: {published['source']}; {published['protocol']}")
    return "\n".join(lines)


def paired_rows(
    metrics: Mapping[str, Any], published: Mapping[str, Any] | None = None
) -> list[tuple[str, dict[str, Any], Mapping[str, Any]]]:
    """Returns (row name, our measures and support, published measures) for classes and averages.

    Rows are the classes in order, then ``macro`` and ``weighted``, whose support is that of all
    classes. The published measures are empty where there are none.
    """
    published = published or {}
    theirs = published.get("per_class", {})
    rows = [(name, dict(row), theirs.get(name, {})) for name, row in metrics["per_class"].items()]
    for average in ("macro", "weighted"):
        ours = dict(metrics[average]) | {"support": metrics["n"]}
        rows.append((average, ours, published.get(average, {})))
    return rows


def number(value: float | None) -> str:
    """Formats a measure in [0, 1] with three decimals, ``-`` for None."""
    return "-" if value is None else f"{value:.3f}"


def _check(labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> None:
    classes = len(class_names)
    if classes < 2 or len(set(class_names)) != classes:
        raise InputError(f"class_names is {list(class_names)}; wanted two or more distinct names.")
    if labels.ndim != 1 or probabilities.shape != (len(labels), classes):
        raise InputError(
            f"labels have shape {labels.shape} and probabilities {probabilities.shape}; "
            f"wanted (N,) and (N, {classes}) for {classes} classes."
        )
    if not len(labels):
        raise InputError("labels and probabilities are empty; wanted one example or more.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels have dtype {labels.dtype}; wanted integers.")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"labels run from {labels.min()} to {labels.max()}; wanted [0, {classes})."
        )
    bad = int(np.sum(~np.isfinite(probabilities).all(axis=1)))
    if bad:
        raise InputError(
            f"probabilities hold NaN or infinity for {bad} of {len(labels)} examples; "
            "wanted finite numbers."
        )
    low, high = probabilities.min(), probabilities.max()
    if low < -_PROBABILITY_SLACK or high > 1 + _PROBABILITY_SLACK:
        raise InputError(
            f"probabilities run from {low:.3g} to {high:.3g}; wanted [0, 1], not logits."
        )


def _auc(positive: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve, None where only positives or only negatives exist."""
    if positive.all() or not positive.any():
        return None
    return float(sklearn.metrics.roc_auc_score(positive, scores))


def _operating_point(
    positive: np.ndarray, scores: np.ndarray, threshold: float
) -> dict[str, float | None]:
    called = scores >= threshold
    hits, calls = int((called & positive).sum()), int(called.sum())
    positives, negatives = int(positive.sum()), int((~positive).sum())
    return {
        "threshold": threshold,
        "recall": hits / positives if positives else None,
        "precision": hits / calls if calls else 0.0,
        "specificity": 1 - (calls - hits) / negatives if negatives else None,
    }


def _specificity(confusion: np.ndarray) -> float | None:
    """Mean over the classes that occur, in rows, of the share of the others not called it."""
    support, called = confusion.sum(1), confusion.sum(0)
    present, others = support > 0, support.sum() - support
    if present.sum() < 2:
        return None
    false = called - confusion.diagonal()
    return float(np.mean(1 - false[present] / others[present]))


def _averages(per_class: Mapping[str, Mapping[str, Any]], weighted: bool) -> dict[str, Any]:
    averages: dict[str, Any] = {}
    for measure in MEASURES:
        rows = [row for row in per_class.values() if row[measure] is not None]
        weights = [row["support"] if weighted else 1 for row in rows]
        values = [row[measure] for row in rows]
        averages[measure] = float(np.average(values, weights=weights)) if rows else None
    return averages
