"""Training and conversion start soon: what imports slowly is imported where it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

SLOW = {
    "torch",
    "tensorflow",
    "sklearn",
    "matplotlib",
    "tensorflow_datasets",
    "tensorboardX",
    "keras",
}


@pytest.mark.parametrize("module", ["train", "evaluate", "convert.keras", "convert.torch"])
def test_slow_packages_are_not_imported_at_the_start(module):
    program = f"import sys, jaxattn.{module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert SLOW.isdisjoint(done.stdout.split())
