"""The tools that prepare data sets: each finds its reader, memory is bounded, Ctrl-C cleans up."""

import csv
import io
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
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}


def command(tool, *flags):
    return [sys.executable, ROOT / "tools" / f"prepare_{tool}.py", *flags]


def make_source(folder, count, size=(450, 600)):
    """A Kaggle layout of `count` links to one image of noise; returns the image's bytes too."""
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=95)
    images = folder / "HAM10000_images_part_1"
    images.mkdir(parents=True)
    (folder / "image").write_bytes(buffer.getvalue())
    with (folder / "HAM10000_metadata.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"])
        for i in range(count):
            out.writerow([f"HAM_{i}", f"ISIC_{i:07}", "nv", "histo", "40.0", "male", "back"])
            (images / f"ISIC_{i:07}.jpg").hardlink_to(folder / "image")
    return len(buffer.getvalue())


@pytest.mark.parametrize(
    ("tool", "flags", "wanted"),
    [
        ("ham10000", [], "a folder that holds HAM10000"),
        ("isic", ["--year=2017"], "a folder that holds ISIC 2017"),
        ("derm7pt", [], "derm7pt's official folder, with a folder images"),
    ],
)
def test_each_tool_uses_its_reader(tmp_path, tool, flags, wanted):
    source = tmp_path / "nowhere"
    flags = [*flags, f"--source={source}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command(tool, *flags), capture_output=True, text=True, env=ENV)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: source: expected {wanted}, got {source}\n"


def test_nothing_but_progress_and_the_report_is_printed(tmp_path):
    make_source(tmp_path / "source", 3, (12, 16))
    flags = [f"--source={tmp_path / 'source'}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(
        command("ham10000", *flags), capture_output=True, text=True, env=ENV, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["writing", "verifying"]
    assert done.stdout.splitlines()[-1].startswith(f"written to {tmp_path / 'out'}")


@pytest.mark.skipif(os.name != "posix", reason="sends an interrupt as POSIX does")
def test_ctrl_c_leaves_nothing(tmp_path):
    make_source(tmp_path / "source", 2000)
    flags = [f"--source={tmp_path / 'source'}", f"--out={tmp_path / 'out'}"]
    # A background job of a shell ignores interrupts, and so would the child.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command("ham10000", *flags), env=ENV, stderr=subprocess.PIPE, text=True
        )
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


PEAK = """
import sys
from pathlib import Path
from jaxattn.data.sources import ham10000
from jaxattn.data.tfds import writer
writer.write(ham10000.read(Path(sys.argv[1])), Path(sys.argv[2]))
status = Path("/proc/self/status").read_text()
print(status.split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure memory")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    peaks = {}
    for count in (100, 400):
        size = make_source(tmp_path / str(count), count)
        arguments = [sys.executable, "-c", PEAK, tmp_path / str(count), tmp_path / f"out{count}"]
        done = subprocess.run(arguments, capture_output=True, text=True, env=ENV)
        assert done.returncode == 0, done.stderr
        peaks[count] = int(done.stdout) * 1024
    # Were records kept, 300 more of them would show in full.
    assert 300 * size > 60e6
    assert peaks[400] - peaks[100] < 0.3 * 300 * size
