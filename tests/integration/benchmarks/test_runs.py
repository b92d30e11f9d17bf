import json
import os

import pytest

from benchmarks import runs
from jaxattn import config
from jaxattn.errors import InputError


@pytest.fixture
def finished(tmp_path):
    """Makes the folder of a finished run with the given evaluations."""

    def make(name, **parts):
        folder = tmp_path / name
        (folder / "evaluation").mkdir(parents=True)
        given = config.base()
        given.dataset.image_size = 32
        given.dataset.num_images = 280
        (folder / "config.json").write_text(given.to_json())
        (folder / "log.jsonl").write_text("")
        os.utime(folder / "config.json", (1000, 1000))
        os.utime(folder / "log.jsonl", (1120, 1120))
        about = {"images": 10, "device": "toaster", "versions": {"jax": "9"}, "dataset": "isic2017"}
        for part, found in parts.items():
            (folder / "evaluation" / f"{part}.json").write_text(json.dumps(about | found))
        return folder

    return make


def metrics(accuracy):
    return {"balanced_accuracy": accuracy, "accuracy": accuracy, "macro": {"auc": 0.9}}


def test_seeds_come_with_baselines_on_the_same_split(finished):
    folder = finished("a", test={"metrics": metrics(0.5)})
    own, majority, regression = runs.collect(folder, runs.KINDS["seeds"])
    assert own["row"] == "attention_cnn, float32"
    assert own["values"] == {"balanced accuracy": 0.5, "macro AUC": 0.9, "accuracy": 0.5}
    assert own["minutes"] == 2.0
    assert majority["values"]["balanced accuracy"] == pytest.approx(1 / 7)
    assert majority["values"]["macro AUC"] == 0.5
    assert regression["values"]["macro AUC"] > 0.5
    assert own["seed"] == majority["seed"] == 0


def test_jaccard_is_of_the_validation_part_if_only_that_has_masks(finished):
    target = {"average_precision": 0.2, "auc": 0.6}
    jaccard = {"images": 3, "mean": {"attention_pool3": 0.4}}
    parts = {"test": {"metrics": {}, "target": target, "jaccard": {}}}
    parts["validation"] = {"jaccard": jaccard}
    (row,) = runs.collect(finished("attnmel", **parts), runs.KINDS["yan"])
    assert row["row"] == "attnmel"
    assert row["values"] == {
        "AP": 0.2,
        "AUC": 0.6,
        "Jaccard attention_pool3": 0.4,
        "Jaccard attention_pool4": None,
        "Jaccard cam": None,
    }


def test_a_run_without_an_evaluation_is_named(finished):
    with pytest.raises(InputError, match="expected a finished and evaluated run"):
        list(runs.collect(finished("b"), runs.KINDS["gessert"]))


def types(**by_name):
    return [
        {"row": f"net, {name}", "values": {"accuracy": value}}
        for name, values in by_name.items()
        for value in values
    ] + [{"row": "majority vote", "values": {"accuracy": 0.1}}]


def test_types_are_compared_by_the_scatter_of_their_seeds():
    rows = types(float32=(0.80, 0.82, 0.84), bfloat16=(0.70, 0.73, 0.73))
    (row,) = runs.compare(rows)
    assert row["metric"] == "accuracy"
    assert row["difference"] == pytest.approx(-0.1)
    # Variances .0004 and .0003, of three each.
    assert row["closeness"] == pytest.approx(-0.1 / (0.0007 / 3) ** 0.5)
    assert list(runs.compare(types(float32=(0.8, 0.9)))) == []
    assert list(runs.compare(types(float32=(0.8,), bfloat16=(0.9,)))) == []
