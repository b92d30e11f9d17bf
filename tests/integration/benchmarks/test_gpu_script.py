"""The first script that runs where a GPU is at hand, at toy size on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_benchmark_of_the_script_runs(tmp_path):
    found = subprocess.run(
        ["bash", "benchmarks/gpu.sh"],
        cwd=ROOT,
        env={**os.environ, "TOY": "1", "OUT": str(tmp_path), "PYTHON": sys.executable},
        text=True,
        capture_output=True,
    )
    assert "== status" not in found.stdout, found.stdout + found.stderr
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert {result["benchmark"] for result in results} == {
        *("attention_kernel", "train_step", "input_pipeline", "scaling", "patch_throughput"),
    }
    assert all(result["rows"] for result in results)
