"""A run that is killed at any file operation and started again ends as one left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(3600)
def test_a_sample_of_kill_points():
    """`make fuzz` tries all; here a hundred of them."""
    done = subprocess.run(
        [sys.executable, "tests/integration/kill_points.py", "--points=100"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 points, 0 wrong" in done.stdout
