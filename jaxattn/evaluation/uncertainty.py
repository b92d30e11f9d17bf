"""Confidence intervals by a bootstrap over lesions, and tests of paired differences.

Images of one lesion resemble each other, so lesions are drawn, with all their images (a cluster
bootstrap); intervals that ignore this are too narrow. A resample is a row of whole-number weights,
one per image, and every metric is computed for many rows at once: curves are cumulative sums of
weights in the order of the scores.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxattn.evaluation import calibration
from jaxattn.evaluation.predictions import Predictions
from jaxattn.metrics import FURTHER, LEAST_SENSITIVITY, MEASURES

RESAMPLES = 10_000
LEVEL = 0.95

#: Metrics by their path in `jaxattn.metrics.classification`, a value per resample; NaN: undefined.
Replicates = dict[tuple[str, ...], np.ndarray]

#: Weights that are computed with at once: few enough to stay in a processor's cache.
_CHUNK = 100_000


def draws(
    lesions: Int[np.ndarray, " N"], resamples: int, seed: int = 0
) -> Iterator[Float[np.ndarray, "b N"]]:
    """Weights of images in resamples of the lesions, in chunks of rows.

    Args:
        lesions: The lesion of each image, from 0.
        resamples: How many rows in all.
        seed: The same seed and lesions give the same rows.
    """
    rng = np.random.default_rng(seed)
    count = int(lesions.max()) + 1
    rows = max(1, _CHUNK // len(lesions))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        yield weights[:, lesions].astype(np.float64)


class Ranking:
    """Examples in the order of their scores: curves and areas of many resamples at once."""

    def __init__(
        self,
        positive: Bool[np.ndarray, " n"],
        scores: Float[np.ndarray, " n"],
        image: Int[np.ndarray, " n"] | None = None,
    ):
        """Sorts, the highest score first; equal scores are one point of a curve.

        So are neighbours without a positive example: no measure depends on the points between.

        Args:
            positive: Whether an example is of the class.
            scores: Of the class.
            image: The column of its weight, by default its own number.
        """
        order = np.argsort(-scores, kind="stable")
        starts = np.append(True, np.diff(scores[order]) != 0)
        group = np.cumsum(starts) - 1
        hits = np.bincount(group, positive[order])
        merged = np.append(True, (hits[1:] > 0) | (hits[:-1] > 0))
        self._starts = np.flatnonzero(starts)[merged]
        self._image = (np.arange(len(scores)) if image is None else image)[order]
        self._positive = positive[order].astype(np.float64)

    def curve(self, weights: Float[np.ndarray, "b N"]) -> tuple[np.ndarray, np.ndarray]:
        """Weights of true and of false positives at each threshold, ``(b, G + 1)``, from 0 on."""
        ordered = weights[:, self._image]
        both = []
        for counted in (ordered * self._positive, ordered):
            steps = np.add.reduceat(counted, self._starts, axis=1)
            both.append(np.hstack([np.zeros((len(weights), 1)), np.cumsum(steps, axis=1)]))
        return both[0], both[1] - both[0]

    def auc(self, weights: Float[np.ndarray, "b N"]) -> Float[np.ndarray, " b"]:
        """Area under the ROC curve; NaN without positives or negatives."""
        true, false = self.curve(weights)
        return _area(true, false) / _or_nan(true[:, -1] * false[:, -1])

    def measures(
        self, weights: Float[np.ndarray, "b N"], sensitivity: float, specificity: float
    ) -> dict[str, Float[np.ndarray, " b"]]:
        """The measures of `jaxattn.metrics.ranked`, NaN where those are None."""
        true, false = self.curve(weights)
        positives, negatives = _or_nan(true[:, -1:]), _or_nan(false[:, -1:])
        defined = (positives * negatives)[:, 0]
        tpr, fpr = true / positives, false / negatives
        gained, called = np.diff(true, axis=1), true[:, 1:] + false[:, 1:]
        precision = np.divide(true[:, 1:], called, out=np.zeros_like(called), where=called > 0)
        slack = 1e-9
        return {
            "auc": _area(true, false) / defined,
            "average_precision": (gained * precision).sum(axis=1) / positives[:, 0] + 0 * defined,
            "partial_auc": _area_above(tpr, fpr, LEAST_SENSITIVITY),
            "sensitivity_at_specificity": np.where(
                fpr <= 1 - specificity + slack, tpr, 0.0 * defined[:, None]
            ).max(axis=1),
            "specificity_at_sensitivity": np.where(
                tpr >= sensitivity - slack, 1 - fpr, 0.0 * defined[:, None]
            ).max(axis=1),
        }


def classification(
    found: Predictions,
    weights: Float[np.ndarray, "b N"],
    *,
    sensitivity: float = 0.9,
    specificity: float = 0.9,
) -> Replicates:
    """`jaxattn.metrics.classification` of weighted images, for many rows of weights at once.

    Args:
        found: The images.
        weights: How often each counts, a row per resample.
        sensitivity: See there.
        specificity: See there.
    """
    names, indices = found.class_names, range(len(found.class_names))
    values: Replicates = {}
    confusion = _confusion(found, weights)
    support = confusion.sum(axis=2)
    rows = {measure: np.empty(support.shape) for measure in (*MEASURES, *FURTHER)}
    for measure, of_classes in _of_classes(confusion).items():
        rows[measure] = of_classes
    for c in indices:
        ranking = Ranking(found.labels == c, found.probabilities[:, c])
        for measure, column in ranking.measures(weights, sensitivity, specificity).items():
            rows[measure][:, c] = column
    for measure, table in rows.items():
        table = np.where(support > 0, table, np.nan)
        for c, name in enumerate(names):
            values["per_class", name, measure] = table[:, c]
        values["macro", measure] = _mean(table, np.ones_like(table))
        values["weighted", measure] = _mean(table, support)
    image = np.repeat(np.arange(len(found)), len(names))
    pooled = (found.labels[:, None] == np.arange(len(names))).ravel(), found.probabilities.ravel()
    values["micro_auc",] = Ranking(*pooled, image).auc(weights)
    values["accuracy",] = np.trace(confusion, axis1=1, axis2=2) / support.sum(axis=1)
    values["balanced_accuracy",] = values["macro", "recall"]
    values["specificity",] = values["macro", "specificity"]
    return values | _calibration(found, weights)


def summary(found: Predictions, weights: Float[np.ndarray, "b N"]) -> Replicates:
    """``accuracy``, ``balanced_accuracy`` and ``macro_auc`` of weighted images, each path one name.

    The averages are over the classes present.
    """
    confusion = _confusion(found, weights)
    support = confusion.sum(axis=2)
    recall = np.where(support > 0, _of_classes(confusion)["recall"], np.nan)
    auc = np.full(support.shape, np.nan)
    for c in np.unique(found.labels):
        auc[:, c] = Ranking(found.labels == c, found.probabilities[:, c]).auc(weights)
    even = np.ones(support.shape)
    return {
        ("accuracy",): np.trace(confusion, axis1=1, axis2=2) / support.sum(axis=1),
        ("balanced_accuracy",): _mean(recall, even),
        ("macro_auc",): _mean(auc, even),
    }


def replicates(
    found: Predictions,
    measure: Callable[[Float[np.ndarray, "b N"]], Replicates],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Replicates:
    """A measure of all resamples of the lesions of some images.

    Args:
        found: The images.
        measure: Takes rows of weights of these images.
        resamples: How many.
        seed: Runs measured on the same images with the same seed have the same resamples, which
            pairs them.
    """
    parts = [measure(weights) for weights in draws(found.lesions, resamples, seed)]
    return {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}


def interval(values: Float[np.ndarray, " b"], level: float = LEVEL) -> list[float] | None:
    """The percentile interval; None if the measure is undefined in half of the resamples."""
    known = values[~np.isnan(values)]
    if 2 * len(known) <= len(values):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def of_proportion(
    values: Float[np.ndarray, " b"],
    lesions: Int[np.ndarray, " N"],
    inside: Bool[np.ndarray, " N"],
    right: Bool[np.ndarray, " N"],
) -> list[float] | None:
    """The interval of a proportion: exact if it is 0 or 1, where no resample has any spread.

    Args:
        values: Of the resamples.
        lesions: The lesion of each image.
        inside: The images that count.
        right: Successes among all images.
    """
    units, successes = len(np.unique(lesions[inside])), right[inside].sum()
    if units and successes in (0, inside.sum()):
        return exact_interval(units if successes else 0, units)
    return interval(values)


def exact_interval(successes: int, trials: int, level: float = LEVEL) -> list[float]:
    """Clopper and Pearson's interval of a proportion."""
    from scipy.stats import binomtest

    found = binomtest(successes, trials).proportion_ci(level, method="exact")
    return [float(found.low), float(found.high)]


def intervals(
    found: Predictions,
    resamples: int = RESAMPLES,
    seed: int = 0,
    *,
    sensitivity: float = 0.9,
    specificity: float = 0.9,
) -> dict[str, Any]:
    """95% intervals of every metric.

    A proportion of 0 or 1 has no spread in any resample: its interval is Clopper and Pearson's,
    each lesion counted once.

    Args:
        found: The images.
        resamples: Of the lesions.
        seed: Of the bootstrap.
        sensitivity: See `jaxattn.metrics.classification`.
        specificity: See there.

    Returns:
        ``[low, high]`` at the place that the metric has in `jaxattn.metrics.classification`, None
        where it is undefined, and ``method``, one line; {} for fewer than two lesions.
    """
    lesions = found.lesions
    count = int(lesions.max()) + 1
    if count < 2 or not resamples:
        return {}
    given = {"sensitivity": sensitivity, "specificity": specificity}
    values = replicates(found, lambda w: classification(found, w, **given), resamples, seed)
    table = {path: interval(column) for path, column in values.items()}
    for path, (inside, right) in _proportions(found).items():
        table[path] = of_proportion(values[path], lesions, inside, right)
    return nest(table) | {"method": method(resamples, count, seed)}


def method(resamples: int, lesions: int, seed: int) -> str:
    """One line that says how intervals were computed."""
    return (
        f"{LEVEL:.0%} percentile intervals of {resamples:,} bootstrap resamples of "
        f"{lesions:,} lesions with all their images, seed {seed}; "
        "Clopper-Pearson over lesions for proportions of 0 and 1"
    )


def nest(table: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Nested dicts of values by path."""
    nested: dict[str, Any] = {}
    for path, value in table.items():
        at = nested
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = value
    return nested


def p_value(differences: Float[np.ndarray, " b"]) -> float | None:
    """Two-sided bootstrap p-value of a difference of 0; None where it is mostly undefined.

    Twice the share of resamples on the far side of 0, counting one more on either side, so that it
    is never 0.
    """
    known = differences[~np.isnan(differences)]
    if 2 * len(known) <= len(differences):
        return None
    tail = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(known) + 1)))


class McNemar(NamedTuple):
    """McNemar's exact test.

    Attributes:
        first: Images that only the first model classifies correctly.
        second: Images that only the second does.
        p: Two-sided p-value, of the binomial distribution; 1 if there are no such images.
    """

    first: int
    second: int
    p: float


def mcnemar(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]) -> McNemar:
    """Tests whether two models are right on the same images equally often (McNemar 1947).

    It takes images as independent, which several of one lesion are not.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, p)


class DeLong(NamedTuple):
    """Areas under ROC curves of several models on the same examples.

    Attributes:
        auc: Of each model, ``(R,)``.
        covariance: ``(R, R)``; NaN if there are fewer than two lesions with or without the class.
    """

    auc: np.ndarray
    covariance: np.ndarray

    def difference(self, first: int, second: int) -> tuple[float, float | None]:
        """AUC of ``second`` minus that of ``first``, and its two-sided p-value.

        None where the covariance is unknown; 1 if the two models rank alike.
        """
        from scipy.stats import norm

        contrast = np.zeros(len(self.auc))
        contrast[[first, second]] = -1, 1
        change = float(contrast @ self.auc)
        variance = float(contrast @ self.covariance @ contrast)
        if np.isnan(variance):
            return change, None
        if variance <= 1e-16:
            return change, 1.0 if abs(change) < 1e-12 else None
        return change, float(2 * norm.sf(abs(change) / np.sqrt(variance)))


def delong(
    positive: Bool[np.ndarray, " N"],
    scores: Float[np.ndarray, "R N"],
    lesions: Int[np.ndarray, " N"] | None = None,
) -> DeLong | None:
    """Areas under the ROC curves of R models and their covariance, over lesions.

    The estimator of DeLong et al. 1988 in the form for clustered data of Obuchowski 1997: the same
    where each image is a lesion of its own.

    Args:
        positive: Whether an example is of the class.
        scores: Of each model.
        lesions: The lesion of each example, from 0; by default each is its own.

    Returns:
        None without examples of both kinds.
    """
    from scipy.stats import rankdata

    lesions = np.arange(len(positive)) if lesions is None else lesions
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        return None
    overall = rankdata(scores, axis=1)
    hits, misses = scores[:, positive], scores[:, ~positive]
    # Structural components: the share of the others that an example is ranked right against.
    above = (overall[:, positive] - rankdata(hits, axis=1)) / n
    below = 1 - (overall[:, ~positive] - rankdata(misses, axis=1)) / m
    auc = above.mean(axis=1)
    count = int(lesions.max()) + 1
    of_positive = _sum_by(lesions[positive], above - auc[:, None], count)
    of_negative = _sum_by(lesions[~positive], below - auc[:, None], count)
    with_positive = len(np.unique(lesions[positive]))
    with_negative = len(np.unique(lesions[~positive]))
    if with_positive < 2 or with_negative < 2:
        return DeLong(auc, np.full((len(auc), len(auc)), np.nan))
    s10 = of_positive @ of_positive.T * with_positive / (with_positive - 1) / m
    s01 = of_negative @ of_negative.T * with_negative / (with_negative - 1) / n
    both = of_positive @ of_negative.T * count / (count - 1)
    return DeLong(auc, s10 / m + s01 / n + (both + both.T) / (m * n))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of a family of p-values; None stays and does not count."""
    known = [i for i, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i] or 0.0)):
        largest = max(largest, min(1.0, (len(known) - rank) * (p_values[i] or 0.0)))
        adjusted[i] = largest
    return adjusted


def _sum_by(lesions: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Sums of each row of values over the images of each lesion."""
    return np.stack([np.bincount(lesions, row, count) for row in values])


def _area(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """Area under curves by the trapezoidal rule, in units of weights."""
    return (np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1])).sum(axis=1) / 2


def _area_above(tpr: np.ndarray, fpr: np.ndarray, least: float) -> np.ndarray:
    """Area between the ROC curve and a false positive rate of 1, above a sensitivity."""
    start, end = tpr[:, :-1], tpr[:, 1:]
    low, high = np.maximum(start, least), np.maximum(end, least)
    rise = np.where(end > start, end - start, 1.0)
    at_low = fpr[:, :-1] + (low - start) / rise * np.diff(fpr, axis=1)
    inside = (high - low) * (1 - (np.where(end > start, at_low, 0.0) + fpr[:, 1:]) / 2)
    return inside.sum(axis=1)


def _or_nan(count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, count, np.nan)


def _mean(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means over the classes that have the measure."""
    known = np.where(np.isnan(table), 0.0, weights)
    return np.where(np.isnan(table), 0.0, table * known).sum(axis=1) / _or_nan(known.sum(axis=1))


def _confusion(found: Predictions, weights: np.ndarray) -> np.ndarray:
    """Weights by truth and prediction, ``(b, C, C)``."""
    classes = len(found.class_names)
    cells = np.eye(classes * classes)[found.labels * classes + found.predictions]
    return (weights @ cells).reshape(-1, classes, classes)


def _of_classes(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Measures of each class's decisions, ``(b, C)``; see `jaxattn.metrics.classification`."""
    hits = np.einsum("bcc->bc", confusion)
    support, called = confusion.sum(axis=2), confusion.sum(axis=1)
    total = support.sum(axis=1, keepdims=True)
    return {
        "precision": np.where(called > 0, hits / _or_nan(called), 0.0),
        "recall": hits / _or_nan(support),
        "f1": 2 * hits / _or_nan(support + called),
        "specificity": 1 - (called - hits) / _or_nan(total - support),
        "npv": 1 - (support - hits) / _or_nan(total - called),
    }


def _calibration(found: Predictions, weights: np.ndarray) -> Replicates:
    labels, probabilities = found.labels, found.probabilities
    sure, right, bins = calibration.confidence(labels, probabilities)
    total = weights.sum(axis=1)
    gaps = weights @ (np.eye(calibration.BINS)[bins] * (right - sure)[:, None])
    return {
        ("calibration", "nll"): weights
        @ -calibration.log_likelihood(labels, probabilities)
        / total,
        ("calibration", "brier"): weights @ calibration.brier(labels, probabilities) / total,
        ("calibration", "ece"): np.abs(gaps).sum(axis=1) / total,
    }


def _proportions(found: Predictions) -> dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]]:
    """Proportions of images by path: which images count, and which of all are successes."""
    labels, predictions = found.labels, found.predictions
    right = labels == predictions
    table: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {
        ("accuracy",): (np.ones(len(found), bool), right)
    }
    for c, name in enumerate(found.class_names):
        own, called = labels == c, predictions == c
        if own.any():
            table["per_class", name, "recall"] = (own, right)
            table["per_class", name, "precision"] = (called, own)
            table["per_class", name, "specificity"] = (~own, ~called)
            table["per_class", name, "npv"] = (~called, ~own)
    return table
