"""Every benchmark at toy size, so that none rots."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = {
    "attention_kernel": ["--smoke", "--tensorflow_python="],
    "grouped_conv": ["--smoke"],
    "input_pipeline": ["--smoke"],
    "patch_throughput": ["--smoke"],
    "scaling": ["--smoke"],
    "train_step": ["--smoke"],
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_runs_and_its_result_makes_a_table(name, tmp_path):
    run = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *BENCHMARKS[name]],
        cwd=ROOT,
        env={**os.environ, "JAXATTN_RESULTS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert result["benchmark"] == name
    assert result["rows"]
    assert result["machine"]["versions"]["jax"]
    blocks = importlib.import_module(f"benchmarks.{name}").table(result).split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert tables
    for head, rule, *rows in tables:
        assert set(rule) <= set("|-: ")
        assert rows
        assert {line.count("|") for line in (rule, *rows)} == {head.count("|")}
