"""Operating points and subgroups."""

import numpy as np
import pytest

from jaxattn import metrics
from jaxattn.evaluation import operating_points, subgroups
from jaxattn.evaluation.predictions import Predictions


def make(scores, positive, lesions=None, **metadata):
    """Two classes; the scores are of the second."""
    scores, positive = np.asarray(scores, float), np.asarray(positive, int)
    lesions = np.arange(len(scores)) if lesions is None else np.asarray(lesions)
    return Predictions(
        class_names=("no", "yes"),
        image_ids=np.char.mod("I%d", np.arange(len(scores))),
        lesion_ids=np.char.mod("L%d", lesions),
        labels=positive,
        predictions=(scores > 0.5).astype(int),
        probabilities=np.stack([1 - scores, scores], 1),
        metadata={name: np.array(column) for name, column in metadata.items()},
    )


def test_thresholds_are_chosen_here_and_applied_there():
    chosen = make([0.9, 0.7, 0.6, 0.4, 0.3, 0.1], [1, 1, 0, 1, 0, 0])
    there = make([0.95, 0.65, 0.5, 0.45, 0.35, 0.2], [1, 0, 1, 0, 1, 0])
    found = operating_points.measure(
        chosen, there, sensitivity=1.0, specificity=0.6, resamples=300
    )["yes"]
    # All three positives: 0.4. Two of three negatives passed: above 0.3, which is 0.4 as well.
    sensitive, specific = found["sensitivity"], found["specificity"]
    assert (sensitive["threshold"], specific["threshold"]) == (0.4, 0.4)
    assert sensitive["where_chosen"]["recall"] == 1
    assert sensitive["recall"] == pytest.approx(2 / 3)
    assert sensitive["specificity"] == pytest.approx(1 / 3)
    assert sensitive["precision"] == 0.5
    assert sensitive["npv"] == 0.5
    low, high = sensitive["intervals"]["recall"]
    assert low < 2 / 3 < high
    strict = operating_points.measure(chosen, there, specificity=1.0)["yes"]["specificity"]
    assert strict["threshold"] == 0.7
    assert strict["where_chosen"]["specificity"] == 1
    assert strict["specificity"] == 1
    assert strict["intervals"]["specificity"] == pytest.approx([0.29240, 1], abs=1e-5)  # 3 of 3


def test_a_class_that_validation_lacks_has_no_operating_point():
    chosen, there = make([0.9, 0.2], [1, 1]), make([0.9, 0.2], [1, 0])
    assert operating_points.measure(chosen, there) == {"no": None, "yes": None}
    one = operating_points.measure(there, make([0.9, 0.2], [1, 1], [0, 0]))["yes"]["sensitivity"]
    assert (one["recall"], one["specificity"], one["intervals"]) == (0.5, None, {})


def test_thresholds_by_trying_all():
    rng = np.random.default_rng(0)
    for _ in range(50):
        positive = rng.random(30) < 0.5
        scores, wanted = np.round(rng.random(30), 1), rng.random()
        points = [metrics.operating_point(positive, scores, t) for t in [*np.unique(scores), 1.1]]
        reached = [p["threshold"] for p in points if p["specificity"] >= wanted]
        found = metrics.threshold_for_specificity(positive, scores, wanted)
        # Just above all scores it is where even the largest calls too much.
        assert (
            found == min(reached) if min(reached) < 1.1 else found == np.nextafter(scores.max(), 2)
        )
        reached = [p["threshold"] for p in points if p["recall"] >= wanted]
        assert metrics.threshold_for_sensitivity(positive, scores, wanted) == max(reached)


def test_subgroups_are_counted_and_measured():
    n = 40
    found = make(
        np.where(np.arange(n) % 4 == 0, 0.2, 0.8),
        np.ones(n, int) - (np.arange(n) % 8 == 0),
        lesions=np.maximum(np.arange(n) - 1, 0),
        sex=["female"] * 32 + ["male"] * 4 + [""] * 4,
        age=["29.5", "30", "44", "45", "75", "90", ""] + ["60"] * 33,
        localization=[""] * n,
    )
    table = subgroups.measure(found, 200)
    assert set(table) == {"sex", "age", "images of the lesion"}  # localization is unknown
    assert {value: row["images"] for value, row in table["sex"].items()} == {
        "female": 32,
        "male": 4,
        "unknown": 4,
    }
    assert [table["sex"][value]["few"] for value in ("female", "male")] == [False, True]
    ages = {value: row["images"] for value, row in table["age"].items()}
    assert ages == {"00-29": 1, "30-44": 2, "45-59": 1, "60-74": 33, "75+": 2, "unknown": 1}
    several = table["images of the lesion"]["several"]
    assert (several["images"], several["lesions"], several["intervals"]) == (2, 1, {})
    female = table["sex"]["female"]
    # Every eighth is "no" and called so, every other fourth is "yes" and is not called.
    assert female["accuracy"] == pytest.approx(28 / 32)
    assert female["balanced_accuracy"] == pytest.approx((1 + 24 / 28) / 2)
    wanted = metrics.classification(
        found.labels[:32], found.probabilities[:32], found.class_names, found.predictions[:32]
    )
    assert female["macro_auc"] == pytest.approx(wanted["macro"]["auc"])
    low, high = female["intervals"]["accuracy"]
    assert low < 28 / 32 < high
    assert table["age"]["00-29"]["macro_auc"] is None
