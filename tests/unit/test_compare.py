import json
import re

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from jaxattn import compare
from jaxattn.errors import InputError
from jaxattn.evaluation import predictions
from jaxattn.evaluation.predictions import Predictions

NAMES = ("a", "b", "c")


def make(strength, seed=0, images=150):
    """A model's predictions of the same images; the labels do not depend on it."""
    rng = np.random.default_rng(7)
    labels, lesions = rng.integers(0, 3, images), rng.integers(0, images // 2, images)
    noise = np.random.default_rng(seed).normal(size=(images, 3))
    scores = np.exp(noise + strength * np.eye(3)[labels])
    probabilities = (scores / scores.sum(1, keepdims=True)).astype(np.float32)
    return Predictions(
        NAMES,
        np.char.mod("I%04d", np.arange(images)),
        np.char.mod("L%d", lesions),
        labels,
        probabilities.argmax(1),
        probabilities.astype(np.float64),
    )


def save(folder, found):
    (folder / "evaluation").mkdir(parents=True)
    predictions.write(folder / "evaluation" / "test_predictions.csv", found)
    return folder


def test_a_better_model_is_found_and_equals_are_not():
    found = {"weak": make(0.3, 1), "strong": make(2.5, 2), "same": make(2.5, 2)}
    result = compare.compare(compare.aligned(found), 400)
    better, equal = result["pairs"][0], result["pairs"][2]
    assert (better["first"], better["second"]) == ("weak", "strong")
    row = better["measures"]["accuracy"]
    right = {name: each.labels == each.predictions for name, each in found.items()}
    assert row["difference"] == pytest.approx(right["strong"].mean() - right["weak"].mean())
    assert 0 < row["interval"][0] < row["difference"] < row["interval"][1]
    assert row["p"] < 0.01
    only = (
        int((right["strong"] & ~right["weak"]).sum()),
        int((right["weak"] & ~right["strong"]).sum()),
    )
    assert (better["mcnemar"]["second"], better["mcnemar"]["first"]) == only
    assert better["mcnemar"]["p"] == pytest.approx(scipy.stats.binomtest(only[0], sum(only)).pvalue)
    for c, name in enumerate(NAMES):
        areas = [
            sklearn.metrics.roc_auc_score(each.labels == c, each.probabilities[:, c])
            for each in found.values()
        ]
        assert better["auc"][name]["difference"] == pytest.approx(areas[1] - areas[0])
        assert better["auc"][name]["p"] <= better["auc"][name]["p_holm"] < 0.05
        assert equal["auc"][name] == {
            "difference": 0.0, "interval": [0, 0], "p": 1.0, "p_holm": 1.0
        }  # fmt: skip
    assert {row["p"] for row in equal["measures"].values()} == {1.0}
    assert equal["mcnemar"]["p"] == 1
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_images_in_another_order_and_classes_in_another_order_are_aligned():
    first, second = make(1.0, 1), make(1.0, 1)
    order, at = np.random.default_rng(0).permutation(len(second)), [2, 0, 1]
    moved = second.take(order)
    moved = Predictions(
        tuple(NAMES[i] for i in at),
        moved.image_ids,
        moved.lesion_ids,
        np.argsort(at)[moved.labels],
        np.argsort(at)[moved.predictions],
        moved.probabilities[:, at],
    )
    aligned = compare.aligned({"one": first, "two": moved})
    for name in ("image_ids", "labels", "predictions", "probabilities"):
        np.testing.assert_array_equal(getattr(aligned["one"], name), getattr(aligned["two"], name))
    assert aligned["two"].class_names == NAMES


def test_other_images_labels_or_classes_are_input_errors():
    first, other = make(1.0), make(1.0)
    with pytest.raises(InputError, match=r"two, images: .* 150 images of one, got 1 of them miss"):
        compare.aligned({"one": first, "two": other.take(np.arange(149))})
    labels = other.labels.copy()
    labels[3] = (labels[3] + 1) % 3
    changed = Predictions(
        NAMES, other.image_ids, other.lesion_ids, labels, other.predictions, other.probabilities
    )
    with pytest.raises(InputError, match="two, labels: expected those of one, got 1 others"):
        compare.aligned({"one": first, "two": changed})
    renamed = Predictions(
        ("a", "b", "d"), *(getattr(other, n) for n in ("image_ids", "lesion_ids", "labels")),
        other.predictions, other.probabilities,
    )  # fmt: skip
    with pytest.raises(InputError, match="two, classes: expected the classes of one: a, b, c"):
        compare.aligned({"one": first, "two": renamed})


def test_both_sources_of_variation_of_three_seeds():
    runs = [make(1.0, seed) for seed in (1, 2, 3)]
    row = compare.aggregate(runs, 500)["accuracy"]
    values = [float((each.labels == each.predictions).mean()) for each in runs]
    assert row["values"] == values
    assert row["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert row["population_deviation"] == pytest.approx(np.std(values))
    # The bootstrap over lesions of the three models' mean: its standard error, by sums of lesions.
    right = np.mean([each.labels == each.predictions for each in runs], axis=0)
    lesions = runs[0].lesions
    sums = np.bincount(lesions, right - right.mean())
    assert row["test_deviation"] == pytest.approx(np.sqrt((sums**2).sum()) / 150, rel=0.1)
    between, within = np.var(values, ddof=1) / 3, row["test_deviation"] ** 2
    freedom = (between + within) ** 2 / (between**2 / 2)
    reach = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(between + within)
    assert row["interval"] == pytest.approx([np.mean(values) - reach, np.mean(values) + reach])


def test_folds_with_test_parts_of_their_own_vary_between_runs_alone():
    whole = make(1.0)
    parts = [whole.take(np.arange(start, 150, 3)) for start in range(3)]
    found = compare.aggregate(parts, 200)
    assert not found["same_images"]
    row = found["accuracy"]
    reach = scipy.stats.t.ppf(0.975, 2) * row["deviation"] / np.sqrt(3)
    assert row["interval"] == pytest.approx([row["mean"] - reach, row["mean"] + reach])
    one = compare.aggregate(parts[:1], 200)["accuracy"]
    assert (one["deviation"], one["interval"], one["population_deviation"]) == (None, None, 0)


def test_the_command_line_prints_and_writes(tmp_path, command):
    folders = [save(tmp_path / name / "run", make(2.0, i)) for i, name in enumerate("xy")]
    status, out, _ = command(
        compare, *map(str, folders), "--resamples=200", f"--out={tmp_path / 'c.json'}"
    )
    assert status == 0
    assert "150 images of" in out
    assert "y/run minus x/run" in out
    assert re.search(r"AUC b \| [+-]0\.\d{3} \[[+-]0\.\d{3}, [+-]0\.\d{3}\] \| ", out)
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["runs_compared"] == ["x/run", "y/run"]
    status, out, _ = command(compare, *map(str, folders), "--aggregate", "--resamples=200")
    assert status == 0
    assert "tested on the same images" in out


def test_the_command_line_shows_bad_input_in_one_sentence(tmp_path, command):
    folder = save(tmp_path / "run", make(1.0))
    status, _, err = command(compare, str(folder))
    assert (status, err[:40]) == (2, "error: runs to compare: expected two or ")
    status, _, err = command(compare, str(folder), str(tmp_path / "none"))
    assert status == 2
    assert "the predictions that python -m jaxattn.evaluate --run=" in err
