"""Metrics of predictions: per class, averaged, and as a table beside a paper's results."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxattn import reference_results
from jaxattn.errors import invalid
from jaxattn.evaluation import calibration

MEASURES = ("precision", "recall", "f1", "auc")
"""The per-class measures of the papers, in the order of tables."""

FURTHER = (
    "specificity",
    "npv",
    "average_precision",
    "partial_auc",
    "sensitivity_at_specificity",
    "specificity_at_sensitivity",
)
"""Further per-class measures."""

LEAST_SENSITIVITY = 0.8
"""The sensitivity above which ``partial_auc`` is taken."""

AGGREGATES = ("accuracy", "balanced_accuracy", "specificity", "micro_auc")
"""Measures of all classes together that tables list below the rows."""

# Softmax in bfloat16 may leave [0, 1] by rounding; logits leave it by far more.
_PROBABILITY_SLACK = 1e-2


def decide(
    probabilities: Float[np.ndarray, "N C"],
    shares: Float[np.ndarray, " C"],
    exponent: float = 0.0,
) -> Int[np.ndarray, " N"]:
    """The class of the largest value of `adjust`; the lowest index wins a tie."""
    return adjust(probabilities, shares, exponent).argmax(axis=1)


def adjust(
    probabilities: Float[np.ndarray, "N C"],
    shares: Float[np.ndarray, " C"],
    exponent: float = 0.0,
) -> Float[np.ndarray, "N C"]:
    """``probability / share^exponent``.

    This is logit adjustment after training (Menon et al. 2021, "Long-tail learning via logit
    adjustment", equation 9). With an exponent of 1 and calibrated probabilities it maximises
    balanced accuracy. A loss weighted by ``share^-k`` already does a part k of it, which leaves
    an exponent of ``1 - k``.

    Args:
        probabilities: Predicted probabilities, a row per example.
        shares: Of each class among the training examples; a class of share 0 counts as the rarest
            of the others.
        exponent: 0 for the probabilities themselves.
    """
    floor = shares[shares > 0].min()
    return probabilities / np.maximum(shares, floor) ** exponent


def classification(
    labels: Int[np.ndarray, " N"],
    probabilities: Float[np.ndarray, "N C"],
    class_names: Sequence[str],
    predictions: Int[np.ndarray, " N"] | None = None,
    *,
    sensitivity: float = 0.9,
    specificity: float = 0.9,
) -> dict[str, Any]:
    """Metrics of a classifier.

    With TP, FP, TN and FN counted for one class against all others:

    - precision (positive predictive value) = TP / (TP + FP), 0 for a class never predicted;
    - recall (sensitivity) = TP / (TP + FN); specificity = TN / (TN + FP);
    - npv = TN / (TN + FN), None for a class that is always predicted;
    - f1 = 2 TP / (2 TP + FP + FN);
    - auc = area under the one-vs-rest ROC curve, ties counting one half;
    - average_precision = Σ (R_n − R_{n−1}) P_n over all thresholds;
    - partial_auc = the area under the ROC curve where sensitivity is above 0.8, in [0, 0.2], the
      ISIC 2024 challenge's measure; 0.02 at random;
    - sensitivity_at_specificity = largest sensitivity of a threshold whose specificity is
      ``specificity`` or more; specificity_at_sensitivity, the reverse. Both thresholds are chosen
      on these very labels; `jaxattn.evaluation.operating_points` has thresholds chosen elsewhere.

    The last five are None unless there are examples both of the class and of others, and so is
    specificity. A class without examples has None for all, is left out of averages and is listed
    in ``absent_classes``.

    Args:
        labels: True class indices in [0, C).
        probabilities: Predicted probabilities in [0, 1], a row per example.
        class_names: The C names, in index order; C is at least 2.
        predictions: Predicted class indices; by default the most probable class, the lowest index
            at a tie.
        sensitivity: That of ``specificity_at_sensitivity``.
        specificity: That of ``sensitivity_at_specificity``.

    Returns:
        A dict that JSON can hold, without NaN:

        - ``n``: number of examples.
        - ``per_class``: name -> the measures and ``support``, the number of examples of the class.
        - ``macro``: mean of each measure over the classes that have it.
        - ``weighted``: the same mean weighted by support.
        - ``micro_auc``: area under the ROC curve of all N×C (example, class) decisions pooled.
        - ``accuracy``: fraction of correct predictions.
        - ``balanced_accuracy``: mean recall over the classes present (MC-sensitivity in Gessert et
          al. 2019, equation 1).
        - ``specificity``: mean over these classes of TN / (TN + FP) (their MC-specificity); None
          if all examples are of one class.
        - ``calibration``: see `jaxattn.evaluation.calibration.measure`.
        - ``confusion``: {classes, counts}; ``counts[truth][prediction]`` in the order of
          ``classes``.
        - ``absent_classes``: names of the classes without examples.
        - ``at``: the ``sensitivity`` and ``specificity`` given.

    Raises:
        InputError: No examples, shapes that disagree, labels out of range, or probabilities that
            are not finite or not in [0, 1].
    """
    from sklearn.metrics import confusion_matrix

    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    _check(labels, probabilities, class_names)
    indices = np.arange(len(class_names))
    if predictions is None:
        predictions = probabilities.argmax(axis=1)
    counts = confusion_matrix(labels, predictions, labels=indices)
    per_class = {
        name: _of_class(counts, c)
        | ranked(labels == c, probabilities[:, c], sensitivity, specificity)
        for c, name in enumerate(class_names)
    }
    for row in per_class.values():
        if not row["support"]:
            row.update(dict.fromkeys((*MEASURES, *FURTHER)))
    macro = _averages(per_class, weighted=False)
    return {
        "n": len(labels),
        "per_class": per_class,
        "macro": macro,
        "weighted": _averages(per_class, weighted=True),
        "micro_auc": _auc((labels[:, None] == indices).ravel(), probabilities.ravel()),
        "accuracy": float(np.mean(labels == predictions)),
        "balanced_accuracy": macro["recall"],
        "specificity": macro["specificity"],
        "calibration": calibration.measure(labels, probabilities),
        "confusion": {"classes": list(class_names), "counts": counts.tolist()},
        "absent_classes": [n for n, row in per_class.items() if not row["support"]],
        "at": {"sensitivity": sensitivity, "specificity": specificity},
    }


def ranked(
    positive: Bool[np.ndarray, " N"],
    scores: Float[np.ndarray, " N"],
    sensitivity: float = 0.9,
    specificity: float = 0.9,
) -> dict[str, float | None]:
    """The measures of a ranking, see `classification`; None without positives or negatives."""
    names = ("auc", *FURTHER[2:])
    if positive.all() or not positive.any():
        return dict.fromkeys(names)
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    # The area above a sensitivity is that below a false positive rate with both kinds exchanged.
    # scikit-learn rescales it from [m², 2m] / 2 to [1/2, 1] (McClish 1989), m the largest rate.
    most = 1 - LEAST_SENSITIVITY
    rescaled = roc_auc_score(~positive, -scores, max_fpr=most)
    partial = most**2 / 2 + (2 * rescaled - 1) * (most - most**2 / 2)
    slack = 1e-9  # 1 - 0.9 is less than 0.1
    return {
        "auc": float(roc_auc_score(positive, scores)),
        "average_precision": float(average_precision_score(positive, scores)),
        "partial_auc": float(partial),
        "sensitivity_at_specificity": float(true[false <= 1 - specificity + slack].max()),
        "specificity_at_sensitivity": float(1 - false[true >= sensitivity - slack].min()),
    }


def detection(
    positive: Bool[np.ndarray, " N"],
    scores: Float[np.ndarray, " N"],
    threshold: float = 0.5,
    sensitivity: float = 0.9,
) -> dict[str, Any]:
    """Metrics of detecting one class among all others.

    Args:
        positive: Whether an example is of the class.
        scores: Its probability of the class, in [0, 1].
        threshold: Scores from here on count as detected.
        sensitivity: The recall that ``at_sensitivity`` has to reach, in (0, 1].

    Returns:
        A dict that JSON can hold:

        - ``auc``: area under the ROC curve; None unless there are examples of both kinds.
        - ``average_precision``: Σ (R_n − R_{n−1}) P_n over all thresholds, scikit-learn's
          ``average_precision_score``; None without positive examples.
        - ``at_threshold``: {threshold, recall, precision, specificity}. Recall is None without
          positive and specificity without negative examples; precision is 0 if nothing is
          detected.
        - ``at_sensitivity``: the same at the highest threshold that reaches the sensitivity; None
          without positive examples. With constant scores everything is detected.

    Raises:
        InputError: ``threshold`` or ``sensitivity`` is out of range.
    """
    if not 0 <= threshold <= 1:
        raise invalid("evaluation.threshold", "a number in [0, 1]", threshold)
    if not 0 < sensitivity <= 1:
        raise invalid("evaluation.sensitivity", "a number in (0, 1]", sensitivity)
    found: dict[str, Any] = {
        "auc": _auc(positive, scores),
        "average_precision": None,
        "at_threshold": operating_point(positive, scores, threshold),
        "at_sensitivity": None,
    }
    if positive.any():
        from sklearn.metrics import average_precision_score

        found["average_precision"] = float(average_precision_score(positive, scores))
        reached = threshold_for_sensitivity(positive, scores, sensitivity)
        found["at_sensitivity"] = operating_point(positive, scores, reached)
    return found


def threshold_for_sensitivity(
    positive: Bool[np.ndarray, " N"], scores: Float[np.ndarray, " N"], sensitivity: float
) -> float:
    """The highest threshold that reaches a sensitivity; there must be positive examples."""
    ordered = np.sort(scores[positive])[::-1]
    # Rounding must not demand one example more: 0.7 of 10 is 7.000000000000001.
    wanted = int(np.ceil(sensitivity * len(ordered) - 1e-9))
    return float(ordered[max(wanted, 1) - 1])


def threshold_for_specificity(
    positive: Bool[np.ndarray, " N"], scores: Float[np.ndarray, " N"], specificity: float
) -> float:
    """The lowest threshold that reaches a specificity; there must be negative examples.

    It is one of the scores, or just above the largest if that one already calls too many.
    """
    candidates = np.unique(scores)
    candidates = np.append(candidates, np.nextafter(candidates[-1], np.inf))
    passed = np.searchsorted(np.sort(scores[~positive]), candidates) / (~positive).sum()
    return float(candidates[np.argmax(passed >= specificity - 1e-9)])


def jaccard(single_map: Float[np.ndarray, "H W"], mask: Shaped[np.ndarray, "H W"]) -> float:
    """Jaccard index of a map, thresholded at 1/2, and a mask (Yan et al. 2019, section 3.3).

    Args:
        single_map: In [0, 1], from `jaxattn.overlays.heatmap`; 1/2 is inside.
        mask: Nonzero inside.

    Returns:
        Intersection over union; 1 if both are empty.
    """
    inside, wanted = single_map >= 0.5, np.asarray(mask) != 0
    union = (inside | wanted).sum()
    return float((inside & wanted).sum() / union) if union else 1.0


def table(
    metrics: Mapping[str, Any],
    reference: Mapping[str, Any] | None = None,
    intervals: Mapping[str, Any] | None = None,
) -> str:
    """Formats metrics as plain text, a row per class and per average.

    Args:
        metrics: From `classification`.
        reference: A paper's result, from `jaxattn.reference_results`, to show beside each number;
            ``-`` where it reports none.
        intervals: From `jaxattn.evaluation.uncertainty.intervals`, to show for the aggregates.

    Returns:
        Lines of equal column widths without a trailing newline.
    """
    beside = has_rows(reference)
    header = ["class"]
    for measure in MEASURES:
        header += [measure, "paper"] if beside else [measure]
    rows = [[*header, "support"]]
    for name, ours, theirs in paired_rows(metrics, reference):
        row = [name]
        for measure in MEASURES:
            row.append(number(ours[measure]))
            row += [number(theirs.get(measure))] if beside else []
        rows.append([*row, str(ours["support"])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *aligned]))
    lines.append("")
    for key in AGGREGATES:
        paper = f"  (paper {number(reference.get(key))})" if reference else ""
        bounds = (intervals or {}).get(key)
        spread = f" [{number(bounds[0])}, {number(bounds[1])}]" if bounds else ""
        lines.append(f"{key.replace('_', ' ')} {number(metrics[key])}{spread}{paper}")
    if intervals:
        lines.append(f"[ ]: {intervals['method']}")
    if metrics["absent_classes"]:
        lines.append(f"no examples of: {', '.join(metrics['absent_classes'])}")
    if reference:
        target = reference.get("target", {})
        if target:
            found = ", ".join(
                f"{key.replace('_', ' ')} {number(target.get(key))}"
                for key in ("auc", "average_precision")
            )
            lines.append(f"paper, {target['class']} against all others: {found}")
        lines.append(f"paper: {reference_results.note(reference)}")
    return "\n".join(lines)


def has_rows(reference: Mapping[str, Any] | None) -> bool:
    """Whether a paper's result has numbers for rows of `paired_rows`."""
    return reference is not None and any(
        row in reference for row in ("per_class", "macro", "weighted")
    )


def paired_rows(
    metrics: Mapping[str, Any], reference: Mapping[str, Any] | None = None
) -> list[tuple[str, dict[str, Any], Mapping[str, Any]]]:
    """Returns (row name, our measures and support, the paper's measures) per class and average.

    Rows are the classes in order, then ``macro`` and ``weighted``, whose support is the number of
    all examples. The paper's measures are empty where it reports none.
    """
    reference = reference or {}
    theirs = reference.get("per_class", {})
    rows = [(name, dict(row), theirs.get(name, {})) for name, row in metrics["per_class"].items()]
    for average in ("macro", "weighted"):
        ours = dict(metrics[average]) | {"support": metrics["n"]}
        rows.append((average, ours, reference.get(average, {})))
    return rows


def number(value: float | None) -> str:
    """Formats a measure in [0, 1] with three decimals, ``-`` for None."""
    return "-" if value is None else f"{value:.3f}"


def _check(labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> None:
    classes = len(class_names)
    if classes < 2 or len(set(class_names)) != classes:
        raise invalid("class_names", "two or more distinct names", list(class_names))
    if labels.ndim != 1 or probabilities.shape != (len(labels), classes):
        raise invalid(
            "labels and probabilities",
            f"shapes (N,) and (N, {classes})",
            f"{labels.shape} and {probabilities.shape}",
        )
    if not len(labels):
        raise invalid("labels", "at least one example", "none")
    if not np.issubdtype(labels.dtype, np.integer):
        raise invalid("labels", "integers", labels.dtype)
    if labels.min() < 0 or labels.max() >= classes:
        raise invalid("labels", f"indices in [0, {classes})", f"{labels.min()} to {labels.max()}")
    bad = int(np.sum(~np.isfinite(probabilities).all(axis=1)))
    if bad:
        raise invalid(
            "probabilities", "finite numbers", f"NaN or infinity in {bad} of {len(labels)} rows"
        )
    low, high = probabilities.min(), probabilities.max()
    if low < -_PROBABILITY_SLACK or high > 1 + _PROBABILITY_SLACK:
        raise invalid("probabilities", "numbers in [0, 1], not logits", f"{low:.3g} to {high:.3g}")


def _auc(positive: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve, None unless there are positives and negatives."""
    if positive.all() or not positive.any():
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores))


def operating_point(
    positive: Bool[np.ndarray, " N"], scores: Float[np.ndarray, " N"], threshold: float
) -> dict[str, float | None]:
    """Calling all scores from a threshold on: recall, precision, specificity and NPV.

    Recall is None without positive and specificity without negative examples, NPV if everything is
    called; precision is 0 if nothing is.
    """
    called = scores >= threshold
    hits, calls = int((called & positive).sum()), int(called.sum())
    positives, negatives = int(positive.sum()), int((~positive).sum())
    passed = len(scores) - calls
    return {
        "threshold": threshold,
        "recall": hits / positives if positives else None,
        "precision": hits / calls if calls else 0.0,
        "specificity": 1 - (calls - hits) / negatives if negatives else None,
        "npv": 1 - (positives - hits) / passed if passed else None,
    }


def _of_class(confusion: np.ndarray, c: int) -> dict[str, Any]:
    """The measures of a class's decisions; rows of ``confusion`` are the truth."""
    hits, support, called = (
        int(n) for n in (confusion[c, c], confusion[c].sum(), confusion[:, c].sum())
    )
    others, passed = int(confusion.sum()) - support, int(confusion.sum()) - called
    return {
        "precision": hits / called if called else 0.0,
        "recall": hits / support if support else None,
        "f1": 2 * hits / (support + called) if support + called else None,
        "specificity": 1 - (called - hits) / others if others else None,
        "npv": 1 - (support - hits) / passed if passed else None,
        "support": support,
    }


def _averages(per_class: Mapping[str, Mapping[str, Any]], weighted: bool) -> dict[str, Any]:
    averages: dict[str, Any] = {}
    for measure in (*MEASURES, *FURTHER):
        rows = [row for row in per_class.values() if row[measure] is not None]
        weights = [row["support"] if weighted else 1 for row in rows]
        values = [row[measure] for row in rows]
        averages[measure] = float(np.average(values, weights=weights)) if rows else None
    return averages
