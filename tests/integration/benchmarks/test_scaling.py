"""What is read from a compiled program, and what is counted by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks import scaling

HLO = """
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%a, %b), metadata={op_name="jit(step)/jvp(Net)/norm/reduce_sum"}
}

ENTRY %main (p: f32[2,8]) -> (f32[8]) {
  %mean.1 = f32[8]{0} fusion(%p), kind=kLoop, metadata={op_name="jit(step)/jvp(Net)/norm/sum"}
  %loss = f32[] fusion(%p), metadata={op_name="jit(step)/jvp()/reduce_sum" stack_frame_id=3}
  %kernel = bf16[3,3,4,8]{3,2,1,0:T(8,128)} fusion(%p), metadata={op_name="jit(step)/transpose(jvp(Net))/conv"}
  %all-reduce.1 = (f32[8]{0}, f32[], /*index=2*/bf16[3,3,4,8]{3,2,1,0}) all-reduce(%mean.1, %loss, %kernel), channel_id=1, to_apply=%sum, metadata={op_name="jit(step)/jvp(Net)/(norm/sum:loss)"}
  %get = f32[8]{0} get-tuple-element(%all-reduce.1), index=0
  %bias = f32[16]{0} negate(%p)
  %all-reduce-start.2 = f32[16]{0} all-reduce-start(%bias), to_apply=%sum, metadata={op_name="jit(step)/transpose(jvp(Net))/bias"}
  %all-reduce-done.2 = f32[16]{0} all-reduce-done(%all-reduce-start.2)
  %all-gather-start.3 = (f32[8]{0}, f32[2,8]{1,0}) all-gather-start(%mean.1), dimensions={0}
  ROOT %all-gather-done.3 = f32[2,8]{1,0} all-gather-done(%all-gather-start.3)
}
"""  # noqa: E501


def test_every_exchange_of_a_program_is_found_once():
    found = scaling.exchanges(HLO)
    assert [(each.kind, each.instruction, each.bytes, each.purpose) for each in found] == [
        ("all-reduce", "all-reduce.1", 4 * 8, "statistics"),
        ("all-reduce", "all-reduce.1", 4, "metrics"),
        ("all-reduce", "all-reduce.1", 2 * 3 * 3 * 4 * 8, "gradients"),
        ("all-reduce", "all-reduce-start.2", 4 * 16, "gradients"),  # named by the instruction
        ("all-gather", "all-gather-start.3", 4 * 2 * 8, "statistics"),
    ]


def test_the_count_by_hand():
    scaled = {"kernel": np.zeros((3, 3, 3, 8)), "norm": {"scale": np.zeros(8), "bias": np.zeros(8)}}
    params = {"a": scaled, "b": {"norm": {"bias": np.zeros(5)}}}
    norms = {"a": {"norm": np.zeros(8)}, "b": {"norm": np.zeros(5)}}
    statistics = {
        layer: {"norm": {"mean": norm["norm"], "var": norm["norm"]}}
        for layer, norm in norms.items()
    }
    assert scaling.by_hand(params, statistics) == {
        "statistics": 4 * 2 * (8 + 5),
        # The variance of b has no scale whose gradient would be the same sum.
        "gradients": 4 * ((216 + 16 + 5) + (8 + 5) + 5),
        "metrics": 8,
    }


def test_a_real_step_exchanges_what_it_must_and_nothing_else(results):
    """On two devices, so in a process of its own, by the command line."""
    toy = "--devices=1,2 --per_device=8 --batch=16 --size=32 --width=8 --repeats=1 --least_ms=0"
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", *toy.split()],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = results.iterdir()
    result = json.loads(path.read_text())
    assert result["command"] == f"python -m benchmarks.scaling {toy}"
    costs = [row for row in result["rows"] if row["measured"] == "cost"]
    assert [(row["devices"], row["batch"]) for row in costs] == [(1, 8), (2, 16), (1, 16), (2, 16)]
    alone, together = [row for row in result["rows"] if row["measured"] == "communication"]
    assert alone["instructions"] == {}
    assert set(alone["bytes"].values()) == {0}
    assert set(together["instructions"]) == {"all-reduce"}
    assert together["bytes"] == together["by_hand"]
    assert min(together["bytes"].values()) == 8
