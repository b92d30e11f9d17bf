"""The table over several seeds against numbers computed by hand."""

import pytest

seeds = pytest.importorskip("benchmarks.seeds")


def run(seed, name, accuracy):
    metrics = {"balanced_accuracy": accuracy, "accuracy": accuracy, "macro": {"auc": accuracy}}
    about = {"minutes": 1.0, "device": "toaster", "versions": {"jax": "9"}}
    return {"seed": seed, "split_seed": 0, "rows": {name: metrics, "majority": metrics}, **about}


def test_types_are_compared_by_the_scatter_of_their_seeds():
    full = [run(seed, "net, float32", of) for seed, of in enumerate((0.80, 0.82, 0.84))]
    half = [run(seed, "net, bfloat16", of) for seed, of in enumerate((0.80, 0.83, 0.83))]
    result = {"rows": full + half}
    # Variances .0004 and .0003, of three each.
    assert seeds.difference(result, "accuracy") == pytest.approx((0.0, (0.0007 / 3) ** 0.5))
    table = seeds.table(result)
    assert "| net, float32 | 0.820 ± 0.020 | 0.820 ± 0.020 | 0.820 ± 0.020 |" in table
    assert "| net, bfloat16 | 0.820 ± 0.017 |" in table
    assert table.count("reached") == 3


def test_a_type_that_is_worse_misses():
    runs = [run(seed, "net, float32", 0.80 + seed / 100) for seed in range(3)]
    runs += [run(seed, "net, bfloat16", 0.70 + seed / 100) for seed in range(3)]
    assert seeds.table({"rows": runs}).count("**missed**") == 3


def test_one_type_alone_is_compared_with_nothing():
    table = seeds.table({"rows": [run(0, "net, float32", 0.8), run(1, "net, float32", 0.9)]})
    assert "| net, float32 | 0.850 ± 0.071 |" in table
    assert "bfloat16" not in table


def test_one_run_of_each_type_has_no_scatter_to_compare_by():
    result = {"rows": [run(0, "net, float32", 0.8), run(0, "net, bfloat16", 0.9)]}
    assert seeds.difference(result, "accuracy") is None
    assert "| net, bfloat16 | 0.900 |" in seeds.table(result)
