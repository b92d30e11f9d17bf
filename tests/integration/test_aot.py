"""Budgets of the training step on accelerators, read off programs compiled without one.

ResNet-50, 256 images of 224×224 per device in bfloat16. On an idle core: 8 H100, ours twice and
textbook Flax, 4 minutes. The compilers are those of ``make aot``.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("JAXATTN_AOT_PYTHON", ROOT / ".venv" / "aot" / "bin" / "python"))

pytestmark = [
    pytest.mark.skipif(not PYTHON.is_file(), reason=f"no {PYTHON}: make aot installs compilers"),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles models for a target: ``(target, devices, *models) -> row by model``."""

    def run(target: str, devices: int, *models: str, groups: int = 1) -> dict[str, dict]:
        folder = tmp_path_factory.mktemp(target)
        environment = {"PYTHONPATH": str(ROOT), "JAXATTN_RESULTS": str(folder)}
        command = [str(PYTHON), "-m", "benchmarks.aot", f"--models={','.join(models)}"]
        subprocess.run(
            [*command, f"--targets={target}", f"--devices={devices}", f"--groups={groups}"],
            cwd=ROOT,
            env={**os.environ, **environment},
            check=True,
        )
        (path,) = folder.glob("aot_*.json")
        return {row["model"]: row for row in json.loads(path.read_text())["rows"]}

    return run


def check(row, memory):
    """What holds on every target: types, preprocessing and memory."""
    single = sum(flops for name, flops in row["products"].items() if name.endswith("f32"))
    assert single < 1e-3 * row["flops"], row["products"]
    assert row["float32_bytes"] < 0.1 * row["bytes"]
    assert row["preprocess_share"] <= 0.03
    assert row["memory"] <= memory


def test_resnet50_on_eight_h100(compiled):
    rows = compiled("h100", 8, "resnet50", "flax_resnet50")
    ours, textbook = rows["resnet50"], rows["flax_resnet50"]
    check(ours, memory=80e9)
    assert ours["bytes"] <= 0.93 * textbook["bytes"]
    assert ours["flops"] == pytest.approx(textbook["flops"], rel=0.01)
    assert "scatter" not in ours["kernels"]  # the gradient of a max pool by XLA
    assert "scatter" in textbook["kernels"]
    # Two per batch norm, the gradients in a few parts, the metrics.
    assert ours["collectives"]["count"] <= 128


def test_statistics_of_each_device_are_not_exchanged_in_a_layer(compiled):
    row = compiled("h100", 8, "resnet50", groups=8)["resnet50"]
    check(row, memory=80e9)
    # The gradients and the running statistics in a few parts, the metrics.
    assert row["collectives"]["count"] <= 40
    # Every parameter and running statistic once, in two to four bytes.
    assert row["collectives"]["bytes"] < 4 * 25.7e6
