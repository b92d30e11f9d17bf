"""The command line: what it prints, where, and how it ends."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxattn

ROOT = Path(jaxattn.__file__).parents[1]
COMMAND = [sys.executable, ROOT / "tools" / "prepare_ham10000.py"]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}


def make_source(folder, count):
    """A Kaggle layout of `count` equal images of the originals' size, in two classes."""
    y, x = np.mgrid[:450, :600]
    buffer = io.BytesIO()
    Image.fromarray((y * x // 1100).astype(np.uint8)).convert("RGB").save(buffer, "JPEG")
    images = folder / "HAM10000_images_part_1"
    images.mkdir(parents=True)
    (folder / "HAM10000_images_part_2").mkdir()
    with (folder / "HAM10000_metadata.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"])
        for i in range(count):
            dx = "mel" if i % 3 == 0 else "nv"
            out.writerow([f"HAM_{i // 2}", f"ISIC_{i:07}", dx, "histo", "40.0", "male", "back"])
            (images / f"ISIC_{i:07}.jpg").write_bytes(buffer.getvalue())
    return folder


def run(*flags):
    return subprocess.run(
        [*COMMAND, *flags], capture_output=True, text=True, env=ENV, cwd="/", timeout=120
    )


def test_a_whole_folder(tmp_path):
    source = make_source(tmp_path / "source", 10)
    done = run(f"--source={source}", f"--out={tmp_path / 'out'}", "--size=120")
    assert done.returncode == 0, done.stderr
    cells = {tuple(line.replace("│", " ").split()) for line in done.stdout.splitlines()}
    counts = {("mel", "4"), ("nv", "6"), ("bcc", "0"), ("images", "10"), ("lesions", "5")}
    assert counts <= cells
    assert "writing" in done.stderr
    assert "writing" not in done.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["images"], report["size"]) == (10, 120)


def test_bad_files_end_it_with_one_line_unless_skipped(tmp_path):
    source = make_source(tmp_path / "source", 6)
    bad = source / "HAM10000_images_part_1" / "ISIC_0000003.jpg"
    bad.write_bytes(bad.read_bytes()[:3000])
    flags = [f"--source={source}", f"--out={tmp_path / 'out'}"]
    done = run(*flags)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert str(bad) in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    done = run(*flags, "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "skipped: 1 unreadable image: ISIC_0000003" in done.stdout


def test_a_wrong_command_line(tmp_path):
    done = run(f"--source={tmp_path}", f"--out={tmp_path / 'out'}", "more")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: command line: expected only flags, got 'more'\n"


@pytest.mark.skipif(os.name != "posix", reason="sends an interrupt as POSIX does")
def test_ctrl_c_leaves_nothing(tmp_path):
    source = make_source(tmp_path / "source", 2000)
    command = [*COMMAND, f"--source={source}", f"--out={tmp_path / 'out'}"]
    # A job in the background of a shell ignores interrupts, and so would the child.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.incomplete-*/*array_record*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip().endswith("interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
