"""benchmarks/gpu.sh, as far as it goes without a GPU: its commands parse and fit into its time."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run(tmp_path, *further):
    """Runs it with an interpreter that only checks flags, as absl can; returns what failed."""
    python = tmp_path / "python"
    real = f'exec {sys.executable} "$@"'
    flags = " ".join(["--only_check_args", *further])
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] && {real} {flags}\n{real}\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh")],
        env={**os.environ, "PYTHON": str(python), "OUT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(re.findall(r"^== \w+ --|^== \w+$", done.stdout, re.M)) == 5
    return re.findall(r"^== status (\d+)", done.stdout, re.M)


def test_every_command_parses(tmp_path):
    assert run(tmp_path) == []


def test_an_unknown_flag_would_be_seen(tmp_path):
    assert len(run(tmp_path, "--nothing_of_the_kind")) == 5


def test_its_shares_leave_time_within_nine_minutes():
    script = (ROOT / "benchmarks" / "gpu.sh").read_text(encoding="utf-8")
    seconds = [int(each) for each in re.findall(r"^share (\d+) ", script, re.M)]
    assert len(seconds) == 5
    assert sum(seconds) + 5 * len(seconds) < 540  # five more until a program is killed
