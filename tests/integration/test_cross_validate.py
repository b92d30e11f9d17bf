"""Cross-validation: which image is where, the published draw, and the command that runs it all."""

import json

import numpy as np
import pytest

from jaxattn import cross_validate, evaluate, run_dir
from jaxattn.data import leaks, splits
from jaxattn.errors import InputError

#: 9 lesions of each class, of 1 to 3 images.
LESIONS = np.arange(27).repeat(np.tile([1, 2, 3], 9))
LABELS = LESIONS // 9


def all_folds(dataset, **options):
    return [splits.make(dataset, "folds", fold=i, folds=2, **options) for i in range(2)]


@pytest.mark.parametrize("leak", ["", "gessert"])
def test_parts_are_equal_by_class_and_the_test_part_is_fixed(make_dataset, leak):
    dataset = make_dataset(LABELS, LESIONS)
    found = all_folds(dataset, leak=leak)
    np.testing.assert_array_equal(found[0]["test"], found[1]["test"])
    assert not set(found[0]["validation"]) & set(found[1]["validation"])
    np.testing.assert_array_equal(
        np.sort(np.concatenate([found[0]["validation"], found[0]["test"]])),
        np.setdiff1d(np.arange(len(LABELS)), found[0]["train"]),
    )
    for split in found:
        assert sorted(np.concatenate(list(split.values()))) == list(range(len(LABELS)))
        for part, share in (("train", 1), ("validation", 1), ("test", 1)):
            if leak:  # 18 images of each class in three parts
                assert np.bincount(LABELS[split[part]]).tolist() == [6 * share] * 3
            else:  # 9 lesions of each class
                held = np.unique(LESIONS[split[part]])
                assert np.bincount(held // 9).tolist() == [3] * 3
    sides = [{int(x) for x in LESIONS[rows]} for rows in found[0].values()]
    assert (len(set.union(*sides)) < sum(map(len, sides))) == bool(leak)
    assert (leaks.measure(dataset, found[0])["lesion"] > 0) == bool(leak)


def test_another_seed_and_order_of_records(make_dataset):
    dataset = make_dataset(LABELS, LESIONS)
    one, other = (splits.make(dataset, "folds", seed=seed)["test"] for seed in (0, 1))
    assert set(one) != set(other)


def test_index_file(make_dataset, tmp_path):
    """Indices are into the images sorted by name, wherever the records stand."""
    dataset = make_dataset(LABELS, LESIONS)
    order = np.random.default_rng(0).permutation(len(LABELS))
    table = {name: column[order] for name, column in dataset.table.items()}
    dataset = make_dataset(LABELS)
    dataset.table.update(table)  # type: ignore[attr-defined]
    parts = np.array_split(np.random.default_rng(1).permutation(len(LABELS)), 3)
    path = tmp_path / "published.npz"
    np.savez(path, test=parts[0], val1=parts[1], train1=parts[2])
    split = splits.make(dataset, "folds", fold=1, leak="gessert", file=str(path))
    for name, part in zip(("test", "validation", "train"), parts, strict=True):
        ids = sorted(f"IMG_{i:05d}" for i in part)
        assert sorted(dataset.table["image_id"][split[name]]) == ids
    with pytest.raises(InputError, match="an .npz of train0, val0, test, got test, val1, train1"):
        splits.make(dataset, "folds", fold=0, leak="gessert", file=str(path))
    with pytest.raises(InputError, match="in one part, got some in the"):
        splits.make(dataset, "folds", fold=1, file=str(path))
    np.savez(path, test=parts[0], val1=parts[1], train1=parts[2][:-1])
    with pytest.raises(InputError, match="expected each of the 54 images of noise once"):
        splits.make(dataset, "folds", fold=1, leak="gessert", file=str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fold": 3}, "split.fold: expected 0 to 2, got 3"),
        ({"folds": 40}, "split.folds: expected fewer than .*, got 40"),
        ({"leak": "select_on_test"}, "split.leak: expected 'gessert' or none with folds"),
        (
            {"strategy": "lesion", "leak": "gessert"},
            "expected 'folds' with split.leak='gessert' .*, got 'lesion'",
        ),
        ({"strategy": "file", "file": "x.npz"}, "split.strategy: expected 'folds'"),
    ],
)
def test_wrong_arguments(make_dataset, arguments, message):
    with pytest.raises(InputError, match=message):
        splits.make(make_dataset(LABELS, LESIONS), **{"strategy": "folds"} | arguments)


def test_all_folds_resume_and_are_summed_up(tiny_config, tmp_path):
    tiny_config.epochs, tiny_config.steps_per_epoch = 1, 3
    tiny_config.split.update(strategy="folds", folds=2)
    steps = []

    def stop(step):
        steps.append(step)
        return len(steps) == 5  # in the second fold: each of its three steps asks once

    assert cross_validate.run(tiny_config, tmp_path / "all", stop) is None
    first = tmp_path / "all" / "fold_0" / evaluate.FOLDER / "test.json"
    written = first.stat().st_mtime_ns
    results = cross_validate.run(tiny_config, tmp_path / "all")
    assert first.stat().st_mtime_ns == written
    assert results == [
        json.loads((tmp_path / "all" / f"fold_{i}" / "evaluation" / "test.json").read_text())
        for i in range(2)
    ]
    splits_of = [
        (tmp_path / "all" / f"fold_{i}" / run_dir.SPLIT).read_text().splitlines() for i in range(2)
    ]
    tests = [{line for line in lines if line.endswith(",test")} for lines in splits_of]
    assert tests[0] == tests[1]
    assert splits_of[0] != splits_of[1]
    found = cross_validate.summary(results)
    values = [result["metrics"]["balanced_accuracy"] for result in results]
    assert found["MC-sensitivity"]["mean"] == pytest.approx(np.mean(values))
    assert found["MC-sensitivity"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert found["MC-sensitivity"]["population_deviation"] == pytest.approx(np.std(values))


def test_table_is_in_per_cent_and_says_what_is_unknown():
    found = {
        "MC-sensitivity": {
            "mean": 0.748,
            "deviation": 0.0113,
            "population_deviation": 0.008,
            "values": [0.74, 0.756],
        },
        "AUC df": {
            "mean": None,
            "deviation": None,
            "population_deviation": None,
            "values": [None, 0.9],
        },
    }
    assert cross_validate.table(found).splitlines()[2:] == [
        "| MC-sensitivity | 74.8 ± 1.1 | ± 0.8 | 74.0, 75.6 |",
        "| AUC df | - | - | -, 90.0 |",
    ]


def test_another_split_is_no_cross_validation(tiny_config, tmp_path):
    with pytest.raises(InputError, match="split.strategy: expected 'folds', got 'lesion'"):
        cross_validate.run(tiny_config, tmp_path)
