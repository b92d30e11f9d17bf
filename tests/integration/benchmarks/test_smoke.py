"""Every benchmark at toy size, in this process where possible."""

import functools
import importlib
import json

import pytest
from absl import flags

from benchmarks import measure, tables

TOYS = {
    "attention_kernel": {"shapes": ("4x4x12x3",), "batches": (2,), "repeats": 1},
    "train_step": {
        "models": ("koefler_cnn_sa",),
        "batches": (2,),
        "size": 75,
        "peers": ("keras_jax",),
        "repeats": 1,
    },
    "input_pipeline": {
        "images": 16,
        "height": 96,
        "small": 64,
        "size": 32,
        "batch": 8,
        "batches": 2,
        "repeats": 1,
        "step_size": 32,
        "width": 8,
        "steps": 2,
    },
    "inference": {
        "models": ("koefler_cnn_sa",),
        "batches": (2,),
        "peers": ("keras_jax",),
        "size": 75,
        "repeats": 1,
        "from_files": ("koefler_cnn_sa",),
        "images": 4,
        "height": 96,
        "decoded": 32,
    },
    "patch_throughput": {
        "backbone": "densenet_small",
        "images": 1,
        "size": 32,
        "steps": 1,
        "rounds": 1,
        "pytorch": True,
    },
}


@pytest.mark.parametrize("name", TOYS)
def test_benchmark_runs_and_its_result_makes_a_table(name, results, request, monkeypatch):
    pytest.importorskip("keras")
    pytest.importorskip("torch")
    module = importlib.import_module(f"benchmarks.{name}")
    if name == "input_pipeline":
        monkeypatch.setattr(flags.FLAGS["tensorflow_python"], "value", "")
    else:
        request.getfixturevalue("local")
    monkeypatch.setattr(measure, "limits", functools.partial(measure.limits, size=2**16, side=64))
    module.run(**TOYS[name])
    (path,) = results.glob("*.json")
    result = json.loads(path.read_text())
    assert result["benchmark"] == name
    assert result["machine"]["versions"]["jax"]
    if name == "input_pipeline":
        measured = {row["pipeline"] for row in result["rows"] if "images_per_second" in row}
        assert measured == {"Grain", "in_memory", "DataLoader"}
    else:
        skipped = {name for row in result["rows"] for name in row.get("skipped", ())}
        assert skipped <= {"keras_tensorflow"}
    blocks = tables.TABLES[name](result).split("\n\n")
    found = [block.splitlines() for block in blocks if block.startswith("|")]
    assert found
    for head, rule, *rows in found:
        assert set(rule) <= set("|-: ")
        assert rows
        assert {line.count("|") for line in (rule, *rows) if line.startswith("|")} == {
            head.count("|")
        }
