import json

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from jaxattn import metrics
from jaxattn.evaluation import uncertainty
from jaxattn.evaluation.predictions import Predictions


def make(labels, probabilities, lesions=None, names=None):
    labels = np.asarray(labels)
    lesions = np.arange(len(labels)) if lesions is None else lesions
    return Predictions(
        class_names=names or tuple("abcdefgh"[: probabilities.shape[1]]),
        image_ids=np.char.mod("I%d", np.arange(len(labels))),
        lesion_ids=np.char.mod("L%d", np.asarray(lesions)),
        labels=labels,
        predictions=probabilities.argmax(1),
        probabilities=probabilities,
    )


def drawn(images=60, classes=3, seed=0, digits=1):
    """Predictions with many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    scores = np.exp(rng.normal(size=(images, classes)) + np.eye(classes)[labels])
    probabilities = np.round(scores / scores.sum(1, keepdims=True), digits)
    return make(labels, probabilities, rng.integers(0, images // 2, images))


def at(nested, path):
    for key in path:
        nested = nested[key]
    return nested


@pytest.mark.parametrize("seed", range(4))
def test_weights_count_as_copies_of_an_image_do(seed):
    """Each row of weights gives what scikit-learn gives for the images repeated as often."""
    found = drawn(seed=seed, classes=2 + seed % 3, digits=1 + seed % 2)
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 4, (5, len(found))).astype(float)
    weights[0] = 1
    values = uncertainty.classification(found, weights, sensitivity=0.8, specificity=0.7)
    for i, row in enumerate(weights.astype(int)):
        copied = found.take(np.repeat(np.arange(len(found)), row))
        wanted = metrics.classification(
            copied.labels,
            copied.probabilities,
            copied.class_names,
            copied.predictions,
            sensitivity=0.8,
            specificity=0.7,
        )
        for path, column in values.items():
            assert column[i] == pytest.approx(at(wanted, path), abs=1e-12), path


def test_a_class_that_a_resample_lacks_is_undefined_there():
    found = make([0, 0, 1, 2], np.eye(3)[[0, 0, 1, 2]])
    values = uncertainty.classification(found, np.array([[1.0, 2, 1, 0], [0, 1, 0, 0]]))
    assert np.isnan(values["per_class", "c", "recall"]).all()
    assert values["balanced_accuracy",].tolist() == [1, 1]
    assert values["macro", "auc"][0] == 1
    assert np.isnan(values["macro", "auc"][1])  # one class alone


def test_draws_are_of_whole_lesions_and_of_the_seed():
    lesions = np.array([0, 1, 0, 2, 3, 3])
    rows = np.concatenate(list(uncertainty.draws(lesions, 30_000, seed=1)))
    assert rows.shape == (30_000, 6)
    assert (rows[:, 0] == rows[:, 2]).all()
    assert (rows[:, 4] == rows[:, 5]).all()
    assert (rows[:, [0, 1, 3, 4]].sum(1) == 4).all()
    counts = np.bincount(rows[:, 1].astype(int)) / len(rows)
    wanted = scipy.stats.binom.pmf(np.arange(len(counts)), 4, 1 / 4)
    np.testing.assert_allclose(counts, wanted, atol=0.01)
    again = np.concatenate(list(uncertainty.draws(lesions, 30_000, seed=1)))
    np.testing.assert_array_equal(rows, again)


def test_intervals_lie_where_the_metrics_do_and_json_holds_them():
    found = drawn(200, digits=3)
    values = metrics.classification(found.labels, found.probabilities, found.class_names)
    bounds = uncertainty.intervals(found, 500)
    assert json.loads(json.dumps(bounds, allow_nan=False)) == bounds
    paths = [("accuracy",), ("macro", "auc"), ("per_class", "b", "npv"), ("calibration", "brier")]
    for path in paths:
        low, high = at(bounds, path)
        assert low < at(values, path) < high
    assert "500 bootstrap resamples" in bounds["method"]
    for average in ("macro", "weighted", *(("per_class", name) for name in "abc")):
        path = (average,) if isinstance(average, str) else average
        measured = {k for k, v in at(values, path).items() if k != "support"}
        assert set(at(bounds, path)) == measured  # every number has one


def test_degenerate_inputs_have_null_or_exact_intervals():
    certain = make([0] * 10 + [1] * 10, np.eye(2)[[0] * 10 + [1] * 10])
    bounds = uncertainty.intervals(certain, 200)
    wanted = scipy.stats.beta.ppf(0.025, 10, 1)  # Clopper-Pearson for 10 of 10
    assert bounds["per_class"]["a"]["recall"] == pytest.approx([wanted, 1])
    assert bounds["accuracy"][0] == pytest.approx(scipy.stats.beta.ppf(0.025, 20, 1))
    absent = make([0, 1, 0, 1], np.full((4, 3), 1 / 3))
    bounds = uncertainty.intervals(absent, 200)
    assert set(bounds["per_class"]["c"].values()) == {None}
    assert bounds["macro"]["auc"] == [0.5, 0.5]  # constant scores
    one = make([0, 0], np.array([[0.9, 0.1], [0.8, 0.2]]), lesions=[5, 5])
    assert uncertainty.intervals(one, 200) == {}
    assert uncertainty.intervals(certain, 0) == {}


def test_mcnemar_by_hand():
    first = np.array([1, 1, 1, 1, 1, 1, 0, 1, 0], bool)
    second = np.array([0, 0, 0, 0, 0, 1, 1, 1, 0], bool)
    found = uncertainty.mcnemar(first, second)
    assert (found.first, found.second) == (5, 1)
    assert found.p == pytest.approx(2 * (1 + 6) / 2**6)  # twice P(at most 1 of 6)
    assert uncertainty.mcnemar(first, first).p == 1


def test_delong_is_its_definition():
    """Equations 3 to 5 of DeLong et al. 1988, pair by pair."""
    rng = np.random.default_rng(0)
    positive = rng.random(40) < 0.4
    scores = np.round(rng.normal(size=(3, 40)) + positive, 1)
    found = uncertainty.delong(positive, scores)

    def psi(x, y):
        return (x > y) + 0.5 * (x == y)

    m, n = positive.sum(), (~positive).sum()
    pairs = psi(scores[:, positive][:, :, None], scores[:, ~positive][:, None, :])
    covariance = np.cov(pairs.mean(2)) / m + np.cov(pairs.mean(1)) / n
    np.testing.assert_allclose(found.auc, pairs.mean((1, 2)))
    np.testing.assert_allclose(found.covariance, covariance)
    for row, auc in zip(scores, found.auc, strict=True):
        assert auc == pytest.approx(sklearn.metrics.roc_auc_score(positive, row))
    difference, p = found.difference(0, 1)
    z = difference / np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert p == pytest.approx(2 * scipy.stats.norm.cdf(-abs(z)))


def test_delong_of_the_worked_example_of_hanley_and_hajian_tilaki():
    """Two classes of three each, by hand: V10 = 1, 1, 2/3 and V01 = 1, 1, 2/3."""
    positive = np.array([True, True, True, False, False, False])
    found = uncertainty.delong(positive, np.array([[9.0, 8.0, 5.0, 6.0, 3.0, 1.0]]))
    assert found.auc[0] == pytest.approx(8 / 9)
    spread = np.var([1, 1, 2 / 3], ddof=1)
    assert found.covariance[0, 0] == pytest.approx(2 * spread / 3)


def test_delong_over_lesions():
    """Copies of every image add no information, and the clustered form knows it."""
    rng = np.random.default_rng(1)
    positive = rng.random(60) < 0.5
    scores = rng.normal(size=(2, 60)) + positive
    once = uncertainty.delong(positive, scores)
    copied = np.tile(positive, 3), np.tile(scores, (1, 3)), np.tile(np.arange(60), 3)
    np.testing.assert_allclose(uncertainty.delong(*copied).covariance, once.covariance)
    naive = uncertainty.delong(*copied[:2]).covariance
    np.testing.assert_allclose(naive, once.covariance / 3, rtol=0.05)


def test_delongs_p_values_are_uniform_where_models_are_equal():
    rng, values = np.random.default_rng(0), []
    for _ in range(400):
        positive = np.arange(80) < 30
        scores = rng.normal(size=80) + rng.normal(size=(2, 80)) + positive
        values.append(uncertainty.delong(positive, scores).difference(0, 1)[1])
    assert 0.06 < np.mean(np.array(values) < 0.1) < 0.14
    assert 0.43 < np.mean(np.array(values) < 0.5) < 0.57


def test_delong_of_degenerate_inputs():
    scores = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.4]])
    assert uncertainty.delong(np.array([True] * 3), scores) is None
    found = uncertainty.delong(np.array([True, False, False]), scores)
    assert found.difference(0, 1) == (0, None)  # one positive: no variance
    constant = uncertainty.delong(np.array([True, True, False, False]), np.full((2, 4), 0.5))
    assert constant.auc.tolist() == [0.5, 0.5]
    assert constant.difference(0, 1) == (0, 1)


def test_holm_by_hand():
    found = uncertainty.holm([0.01, None, 0.04, 0.03, 0.005])
    assert found == pytest.approx([0.03, None, 0.06, 0.06, 0.02])
    assert uncertainty.holm([0.9, 0.8]) == [1, 1]
    assert uncertainty.holm([None]) == [None]


def test_the_bootstraps_p_value():
    assert uncertainty.p_value(np.linspace(-1, 3, 401)) == pytest.approx(2 * 102 / 402)
    assert uncertainty.p_value(np.ones(999)) == 0.002
    assert uncertainty.p_value(np.zeros(9)) == 1
    assert uncertainty.p_value(np.full(9, np.nan)) is None
