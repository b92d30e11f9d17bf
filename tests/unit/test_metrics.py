import json

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxattn import metrics, reference_results
from jaxattn.errors import InputError

NAMES = ("a", "b", "c")


def rank_auc(positive, scores):
    """The Mann-Whitney definition: the fraction of (positive, negative) pairs in order."""
    p, n = scores[positive][:, None], scores[~positive][None, :]
    return ((p > n).sum() + 0.5 * (p == n).sum()) / (p.size * n.size)


@st.composite
def predictions(draw):
    classes = draw(st.integers(2, 5))
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, draw(st.integers(1, classes)), n)
    # Few distinct values, so that scores tie; rows need not sum to one.
    scores = rng.integers(0, draw(st.integers(2, 9)), (n, classes)) / 8
    return labels, scores


@settings(max_examples=60, deadline=None)
@given(predictions())
def test_every_measure_is_what_counting_gives(case):
    labels, scores = case
    names = [f"class {c}" for c in range(scores.shape[1])]
    result = metrics.classification(labels, scores, names)
    predicted = np.array([max(range(len(row)), key=lambda c: (row[c], -c)) for row in scores])
    expected = {}
    for c, name in enumerate(names):
        row = result["per_class"][name]
        tp = int(((labels == c) & (predicted == c)).sum())
        fp = int(((labels != c) & (predicted == c)).sum())
        fn = int(((labels == c) & (predicted != c)).sum())
        assert row["support"] == tp + fn
        assert sum(r[c] for r in result["confusion"]["counts"]) == tp + fp
        assert result["confusion"]["counts"][c][c] == tp
        if tp + fn == 0:
            assert name in result["absent_classes"]
            assert [row[m] for m in metrics.MEASURES] == [None] * 4
            continue
        expected[name] = {
            "precision": tp / (tp + fp) if tp + fp else 0.0,
            "recall": tp / (tp + fn),
            "f1": 2 * tp / (2 * tp + fp + fn),
        }
        if tp + fn < len(labels):
            expected[name]["auc"] = rank_auc(labels == c, scores[:, c])
        else:
            assert row["auc"] is None
        for measure, value in expected[name].items():
            assert row[measure] == pytest.approx(value)
    for measure in metrics.MEASURES:
        pairs = [
            (row[measure], result["per_class"][name]["support"])
            for name, row in expected.items()
            if measure in row
        ]
        if not pairs:
            assert result["macro"][measure] is result["weighted"][measure] is None
            continue
        macro = sum(v for v, _ in pairs) / len(pairs)
        weighted = sum(v * s for v, s in pairs) / sum(s for _, s in pairs)
        assert result["macro"][measure] == pytest.approx(macro)
        assert result["weighted"][measure] == pytest.approx(weighted)
    assert result["accuracy"] == pytest.approx(np.mean(predicted == labels))
    pooled = rank_auc(np.eye(len(names), dtype=bool)[labels].ravel(), scores.ravel())
    assert result["micro_auc"] == pytest.approx(pooled)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_averages_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    scores = rng.dirichlet(np.ones(4), 200)
    scores[np.arange(200), labels] += 0.3
    scores /= scores.sum(axis=1, keepdims=True)
    result = metrics.classification(labels, scores, list("wxyz"))
    predicted = scores.argmax(axis=1)
    for average in ("macro", "weighted"):
        p, r, f, _ = sklearn.metrics.precision_recall_fscore_support(
            labels, predicted, average=average
        )
        auc = sklearn.metrics.roc_auc_score(labels, scores, multi_class="ovr", average=average)
        ours = [result[average][measure] for measure in metrics.MEASURES]
        assert ours == pytest.approx([p, r, f, auc])
    assert result["balanced_accuracy"] == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(labels, predicted)
    )
    assert result["micro_auc"] == pytest.approx(
        sklearn.metrics.roc_auc_score(np.eye(4)[labels], scores, average="micro")
    )


def test_confusion_matrix_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    scores = np.eye(3)[[0, 0, 1, 1, 0, 1]]
    result = metrics.classification(labels, scores, NAMES)
    assert result["confusion"] == {
        "classes": ["a", "b", "c"],
        "counts": [[2, 1, 0], [1, 1, 0], [0, 1, 0]],
    }
    assert result["per_class"]["a"]["precision"] == pytest.approx(2 / 3)
    assert result["per_class"]["c"]["precision"] == 0  # never predicted
    assert result["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_an_absent_class_is_named_and_left_out_of_the_means():
    labels = np.array([0, 0, 1, 1])
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1]])
    result = metrics.classification(labels, scores, NAMES)
    assert result["absent_classes"] == ["c"]
    assert result["per_class"]["c"]["auc"] is None
    assert result["balanced_accuracy"] == result["macro"]["recall"] == pytest.approx(0.75)
    assert "no examples of: c" in metrics.table(result)


def test_one_class_only_has_no_auc():
    result = metrics.classification(np.ones(3, np.int32), np.full((3, 3), 1 / 3), NAMES)
    assert result["absent_classes"] == ["a", "c"]
    assert result["macro"]["auc"] is None
    assert result["weighted"]["auc"] is None
    assert result["accuracy"] == 0  # the lowest index wins a tie
    assert " -" in metrics.table(result)


def test_constant_scores_have_an_auc_of_one_half():
    result = metrics.classification(np.array([0, 1, 2]), np.full((3, 3), 1 / 3), NAMES)
    assert [row["auc"] for row in result["per_class"].values()] == [0.5] * 3
    assert result["micro_auc"] == 0.5


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (np.zeros(0, int), np.zeros((0, 3)), "labels: expected at least one example, got none"),
        (np.zeros(2, int), np.array([[np.nan, 0, 0], [1, 0, 0]]), "NaN or infinity in 1 of 2"),
        (np.zeros(2, int), np.zeros((3, 3)), r"got \(2,\) and \(3, 3\)"),
        (np.zeros(2, int), np.zeros((2, 4)), r"expected shapes \(N,\) and \(N, 3\)"),
        (np.zeros(2), np.zeros((2, 3)), "labels: expected integers, got float64"),
        (np.array([0, 3]), np.zeros((2, 3)), r"expected indices in \[0, 3\), got 0 to 3"),
        (np.array([0, 2]), np.array([[-3.0, 2, 5]] * 2), "not logits, got -3 to 5"),
    ],
)
def test_bad_input_is_named(labels, scores, message):
    # The check itself, as a shape-checking import hook may reject such calls before it.
    with pytest.raises(InputError, match=message):
        metrics._check(labels, scores, NAMES)


def test_class_names_are_checked():
    with pytest.raises(InputError, match="distinct"):
        metrics.classification(np.zeros(1, int), np.ones((1, 2)) / 2, ("a", "a"))


def test_table_shows_a_papers_numbers_beside_ours():
    entry = reference_results.find("ham10000", "datta 85/15", "irv2_sa")
    result = metrics.classification(np.arange(7), np.eye(7), list(entry["per_class"]))
    lines = metrics.table(result, entry).splitlines()
    assert lines[0].split() == [
        *("class", "precision", "paper", "recall", "paper", "f1", "paper", "auc", "paper"),
        "support",
    ]
    melanoma = next(line for line in lines if line.startswith("mel"))
    assert " ".join(melanoma.split()) == "mel 1.000 0.670 1.000 0.650 1.000 0.660 1.000 0.974 1"
    weighted = next(line for line in lines if line.startswith("weighted"))
    assert " ".join(weighted.split()) == "weighted 1.000 0.938 1.000 0.935 1.000 - 1.000 0.984 7"
    assert len({len(line) for line in lines[:10]}) == 1
    assert "selected on the test set" in lines[-1]
    assert "paper" not in metrics.table(result)


def test_table_beside_a_paper_that_reports_one_class():
    entry = reference_results.find("isic2017", "official", "attnmel")
    result = metrics.classification(np.arange(2), np.eye(2), ("rest", "melanoma"))
    lines = metrics.table(result, entry).splitlines()
    assert lines[0].split() == ["class", "precision", "recall", "f1", "auc", "support"]
    assert "paper, melanoma against all others: auc 0.872, average precision 0.655" in lines


def scored(seed=0, count=60):
    rng = np.random.default_rng(seed)
    positive = rng.uniform(size=count) < 0.3
    # Rounded, so that there are ties.
    scores = np.clip(0.4 * positive + rng.uniform(size=count) * 0.6, 0, 1).round(1)
    return positive, scores


@pytest.mark.parametrize("seed", range(5))
def test_detection_is_scikit_learns(seed):
    positive, scores = scored(seed)
    found = metrics.detection(positive, scores, threshold=0.4, sensitivity=0.8)
    assert found["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(positive, scores))
    assert found["average_precision"] == pytest.approx(
        sklearn.metrics.average_precision_score(positive, scores)
    )
    at = found["at_threshold"]
    called = scores >= 0.4
    assert at["recall"] == pytest.approx(sklearn.metrics.recall_score(positive, called))
    assert at["precision"] == pytest.approx(sklearn.metrics.precision_score(positive, called))
    assert at["specificity"] == pytest.approx(sklearn.metrics.recall_score(~positive, ~called))
    # Of all thresholds that reach the sensitivity, the highest.
    false, true, thresholds = sklearn.metrics.roc_curve(positive, scores, drop_intermediate=False)
    first = np.flatnonzero(true >= 0.8)[0]
    at = found["at_sensitivity"]
    assert at["threshold"] == thresholds[first]
    assert at["recall"] == pytest.approx(true[first])
    assert at["specificity"] == pytest.approx(1 - false[first])


def test_detection_on_degenerate_input():
    """One class only, constant scores, nothing called positive: defined, and JSON can hold it."""
    scores = np.array([0.2, 0.9, 0.4])
    none = metrics.detection(np.zeros(3, bool), scores)
    assert none["auc"] is none["average_precision"] is none["at_sensitivity"] is None
    assert none["at_threshold"] == {
        "threshold": 0.5, "recall": None, "precision": 0.0, "specificity": pytest.approx(2 / 3),
            "npv": 1.0,
    }  # fmt: skip
    only = metrics.detection(np.ones(3, bool), scores)
    assert only["auc"] is None
    assert only["average_precision"] == 1
    assert only["at_threshold"]["specificity"] is None
    assert only["at_sensitivity"]["threshold"] == 0.2
    constant = metrics.detection(np.array([True, False, False, False]), np.full(4, 0.25))
    assert constant["auc"] == 0.5
    assert constant["average_precision"] == 0.25
    assert constant["at_threshold"]["precision"] == constant["at_threshold"]["recall"] == 0
    assert constant["at_sensitivity"]["recall"] == 1
    assert constant["at_sensitivity"]["specificity"] == 0
    json.dumps([none["at_sensitivity"], only, constant], allow_nan=False)


def test_detection_says_what_is_out_of_range():
    with pytest.raises(InputError, match=r"evaluation.threshold: expected .*, got 2.0"):
        metrics.detection(*scored(), threshold=2.0)
    with pytest.raises(InputError, match=r"evaluation.sensitivity: expected .*, got 0.0"):
        metrics.detection(*scored(), sensitivity=0.0)


def test_jaccard_is_scikit_learns():
    rng = np.random.default_rng(0)
    single, mask = rng.uniform(size=(9, 8)), rng.uniform(size=(9, 8)) < 0.3
    wanted = sklearn.metrics.jaccard_score(mask.ravel(), (single >= 0.5).ravel())
    assert metrics.jaccard(single, mask) == pytest.approx(wanted)
    assert metrics.jaccard(single, np.zeros((9, 8), np.uint8)) == 0
    assert metrics.jaccard(np.zeros((9, 8)), np.zeros((9, 8), np.uint8)) == 1


def test_decisions_by_hand():
    shares = np.array([0.81, 0.09, 0.09, 0.01])
    probabilities = np.array([[0.8, 0.1, 0.05, 0.05], [0.4, 0.2, 0.3, 0.1], [0.7, 0.3, 0.0, 0.0]])
    assert metrics.decide(probabilities, shares).tolist() == [0, 0, 0]
    # Divided by .9, .3, .3 and .1: .89, .33, .17, .5; .44, .67, 1, 1 (a tie); .78, 1, 0, 0.
    assert metrics.decide(probabilities, shares, 0.5).tolist() == [0, 2, 1]
    assert metrics.decide(probabilities, shares, 1.0).tolist() == [3, 3, 1]
    absent = metrics.decide(np.array([[0.2, 0.5, 0.3]]), np.array([0.5, 0.5, 0.0]), 1.0)
    assert absent.tolist() == [1]  # as rare as the rarest that there is, not infinitely rare


def test_given_decisions_are_measured_and_the_probabilities_keep_their_auc():
    labels = np.array([0, 0, 1, 1])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    plain = metrics.classification(labels, scores, ("a", "b"))
    decided = metrics.classification(labels, scores, ("a", "b"), np.array([0, 1, 1, 1]))
    assert (plain["balanced_accuracy"], decided["balanced_accuracy"]) == (0.5, 0.75)
    assert decided["confusion"]["counts"] == [[1, 1], [0, 2]]
    assert plain["macro"]["auc"] == decided["macro"]["auc"] == 1


@pytest.mark.parametrize("seed", range(5))
def test_further_measures_by_trying_every_threshold(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 40)
    scores = np.round(np.clip(rng.normal(0.4, 0.2, 40) + 0.2 * labels, 0, 1), 1 + seed % 2)
    found = metrics.classification(
        labels, np.stack([1 - scores, scores], 1), ("no", "yes"), sensitivity=0.8, specificity=0.7
    )["per_class"]["yes"]
    positive, called = labels == 1, scores > 0.5
    assert found["specificity"] == pytest.approx((~called & ~positive).sum() / (~positive).sum())
    assert found["npv"] == pytest.approx((~called & ~positive).sum() / (~called).sum())
    assert found["average_precision"] == pytest.approx(
        sklearn.metrics.average_precision_score(positive, scores)
    )
    points = [
        (scores[~positive] >= t).mean() + 1j * (scores[positive] >= t).mean()
        for t in [2, *np.unique(scores)[::-1]]
    ]
    false, true = np.real(points), np.imag(points)
    assert found["sensitivity_at_specificity"] == true[1 - false >= 0.7 - 1e-9].max()
    assert found["specificity_at_sensitivity"] == (1 - false)[true >= 0.8 - 1e-9].max()
    # The area to the right of the curve, above a sensitivity of .8: a fine sum over sensitivities,
    # each at the false positive rate of the straight line between points.
    steps = (np.arange(200_000) + 0.5) / 1e6 + 0.8
    order = np.lexsort((false, true))
    right = np.interp(steps, true[order], false[order])
    assert found["partial_auc"] == pytest.approx((1 - right).mean() * 0.2, abs=1e-4)


def test_measures_of_constant_scores_and_of_one_class():
    constant = metrics.classification(np.array([0, 1, 1]), np.full((3, 2), 0.5), ("a", "b"))
    row = constant["per_class"]["b"]
    assert row["average_precision"] == pytest.approx(2 / 3)
    assert row["partial_auc"] == pytest.approx(0.02)
    assert row["sensitivity_at_specificity"] == row["specificity_at_sensitivity"] == 0
    assert constant["per_class"]["a"]["npv"] is None  # nothing is called b
    one = metrics.classification(np.array([0, 0]), np.array([[0.9, 0.1], [0.2, 0.8]]), ("a", "b"))
    assert one["per_class"]["a"]["specificity"] is one["per_class"]["a"]["partial_auc"] is None
    assert one["macro"]["specificity"] is one["specificity"] is None
    json.dumps([constant, one], allow_nan=False)
