"""What is read from a compiled program, what is counted by hand, and the model on paper."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

scaling = pytest.importorskip("benchmarks.scaling")
ROOT = Path(__file__).parents[2]

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


STEP = """
import json, runpy, sys
import jax
from jaxattn import experiment
from jaxattn.runtime import devices
from jaxattn.config import base
from jaxattn.models import registry
sys.path.insert(0, sys.argv[2])
from benchmarks import scaling
devices.split_cpu(2)
registry.MODELS["tiny"] = registry.Model(runpy.run_path(sys.argv[1])["Tiny"], 32)
config = base()
config.model.name = "tiny"
config.dataset.update(image_size=32, num_images=210)
config.loader.name = "resident"
built = experiment.build(config)
state = jax.device_get(built.initial_state())
steps = {devices: scaling.Step(built, state, devices, 8) for devices in (1, 2)}
print(json.dumps([scaling.communication(step, devices) for devices, step in steps.items()]))
"""


def test_a_real_step_exchanges_what_it_has_to_and_nothing_else():
    """The tiny model has 377 parameters and a batch norm of 8 channels, counted here by hand."""
    conftest = ROOT / "tests" / "conftest.py"
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(conftest), str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
    )
    alone, together = json.loads(done.stdout.splitlines()[-1])
    assert alone["instructions"] == {}
    assert set(alone["bytes"].values()) == {0}
    parameters = (3 * 3 * 3 + 1) * 8 + 2 * 8 + (8 + 1) * 2 + (16 + 1) * 7
    assert set(together["instructions"]) == {"all-reduce"}
    wanted = {"statistics": 4 * 16, "gradients": 4 * (parameters + 8), "metrics": 8}
    assert together["bytes"] == together["by_hand"] == wanted


def test_an_all_reduce_on_paper():
    assert scaling.all_reduce(1e9, 1, 1e9, 1.0) == 0
    # Of 8 devices each sends 2 · 7/8 of it; up and down a tree of three levels.
    assert scaling.all_reduce(8e9, 8, 1e9, 0.5) == pytest.approx(14 + 3.0)
    assert scaling.all_reduce(0, 64, 1e9, 0.5) == pytest.approx(6.0)


def test_the_efficiency_on_paper():
    """25 million parameters: 100 MB, for 8 devices at 100 GB/s 1.75 ms, for 2 hosts at 10, 10."""
    cluster = scaling.Cluster(2, 8, 100e9, 0.0, 10e9, 1e-5)
    assert cluster.all_reduce(1e8) == pytest.approx(1.75e-3 + 10e-3 + 2e-5)
    # 50 batch norms of 500 channels: 4 kB in 0.07 + 0.4 + 20 µs, 100 times.
    statistics = 100 * (1.75 * 4e3 / 100e9 + 4e3 / 10e9 + 2e-5)
    least, most = cluster.efficiency(0.03, norms=50, channels=25_000, parameters=25_000_000)
    assert least == pytest.approx(0.03 / (0.03 + statistics + 11.77e-3))
    assert most == pytest.approx(0.03 / (0.03 + statistics))
    # A backward pass of 6 ms hides 6 of 11.77 ms.
    _, most = cluster.efficiency(0.009, norms=0, channels=0, parameters=25_000_000)
    assert most == pytest.approx(0.009 / (0.009 + 5.77e-3))
    single = scaling.Cluster(1, 1, 1.0, 1.0, 1.0, 1.0)
    assert single.efficiency(1.0, 1, 1, 1) == (1.0, 1.0)


def test_sizes_of_a_model():
    """Keras prints 17,477,463 parameters of this network, 17,264,151 of them trained."""
    found = scaling.sizes("densenet201_sa")
    assert found["parameters"] == 17_264_151
    assert 2 * found["channels"] == 17_477_463 - 17_264_151
