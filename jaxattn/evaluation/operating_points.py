"""Operating points: thresholds chosen on one part of the data and applied to another."""

from typing import Any

import numpy as np
from jaxtyping import Float

from jaxattn import metrics
from jaxattn.evaluation import uncertainty
from jaxattn.evaluation.predictions import Predictions

MEASURES = ("recall", "specificity", "precision", "npv")


def measure(
    chosen_on: Predictions,
    applied_to: Predictions,
    *,
    sensitivity: float = 0.9,
    specificity: float = 0.9,
    resamples: int = uncertainty.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Thresholds on the probability of each class, and what they do elsewhere.

    Args:
        chosen_on: Where the thresholds are chosen: the validation part.
        applied_to: Where they are applied: the test part.
        sensitivity: The highest threshold that reaches it is chosen.
        specificity: Likewise the lowest one.
        resamples: Of the lesions, for intervals; thresholds stay as they are.
        seed: Of the bootstrap.

    Returns:
        By class, ``sensitivity`` and ``specificity``: ``wanted``, ``threshold``, ``MEASURES`` on
        the images it is applied to, ``intervals`` of them, and ``where_chosen``, the measures
        there. None for a class without examples, or without others, where thresholds are chosen.
    """
    found: dict[str, Any] = {}
    calls: dict[tuple[str, str], np.ndarray] = {}
    for c, name in enumerate(applied_to.class_names):
        own, scores = chosen_on.labels == c, chosen_on.probabilities[:, c]
        if not own.any() or own.all():
            found[name] = None
            continue
        found[name] = {}
        for kind, wanted, choose in (
            ("sensitivity", sensitivity, metrics.threshold_for_sensitivity),
            ("specificity", specificity, metrics.threshold_for_specificity),
        ):
            threshold = choose(own, scores, wanted)
            there = applied_to.probabilities[:, c]
            calls[name, kind] = there >= threshold
            found[name][kind] = {
                "wanted": wanted,
                **metrics.operating_point(applied_to.labels == c, there, threshold),
                "where_chosen": metrics.operating_point(own, scores, threshold),
                "intervals": {},
            }
    if resamples and len(np.unique(applied_to.lesions)) > 1:
        _add_intervals(found, calls, applied_to, resamples, seed)
    return found


def _add_intervals(
    found: dict[str, Any],
    calls: dict[tuple[str, str], np.ndarray],
    applied_to: Predictions,
    resamples: int,
    seed: int,
) -> None:
    index = {name: c for c, name in enumerate(applied_to.class_names)}

    def of(weights: Float[np.ndarray, "b N"]) -> uncertainty.Replicates:
        values: uncertainty.Replicates = {}
        for (name, kind), called in calls.items():
            own = applied_to.labels == index[name]
            for measure, (inside, right) in _proportions(own, called).items():
                total = weights @ inside
                values[name, kind, measure] = np.divide(
                    weights @ (inside & right),
                    total,
                    where=total > 0,
                    out=np.full(len(total), np.nan),
                )
        return values

    lesions = applied_to.lesions
    for (name, kind, measure), column in uncertainty.replicates(
        applied_to, of, resamples, seed
    ).items():
        own = applied_to.labels == index[name]
        inside, right = _proportions(own, calls[name, kind])[measure]
        found[name][kind]["intervals"][measure] = uncertainty.of_proportion(
            column, lesions, inside, right
        )


def _proportions(own: np.ndarray, called: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Which images count for a measure, and which of all are its successes."""
    return {
        "recall": (own, called),
        "specificity": (~own, ~called),
        "precision": (called, own),
        "npv": (~called, ~own),
    }
