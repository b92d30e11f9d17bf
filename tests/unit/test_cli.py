"""What a user gets wrong on the command line is one line, with exit status 2."""

import subprocess
import sys

import pytest

from jaxattn import train

CONFIGS = {
    "nothing.py": ("x = 1\n", "nothing.py: expected a function get_config, got none"),
    "number.py": (
        "def get_config():\n    return 3\n",
        "--config: expected a file whose get_config() returns a ConfigDict, got <class 'int'>",
    ),
    "raises.py": (
        "def get_config():\n    raise RuntimeError('no\\nluck')\n",
        "raises.py, line 2: expected a config, got RuntimeError: no luck",
    ),
    "value.py": (
        "def get_config():\n    raise ValueError('no luck')\n",
        "value.py: expected a config, got ValueError: no luck",
    ),
    "imports.py": (
        "import nowhere_to_be_found\n",
        "imports.py, line 1: expected a config, got ModuleNotFoundError: No module named "
        "'nowhere_to_be_found'",
    ),
    "syntax.py": ("def get_config(:\n", "syntax.py: expected Python, got invalid syntax in line 1"),
    "README.md": (
        "# Title\n",
        "--config: expected a Python file, or the name of a config, got README.md",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_none_is_one_line(command, tmp_path, monkeypatch, name):
    content, message = CONFIGS[name]
    (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    status, out, err = command(train, f"--config={name}", "--workdir=run")
    assert (status, out, err) == (2, "", f"error: {message}\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("file", "a folder, got the file file"),
        ("file/run", "a folder, got file/run, below the file file"),
        ("/proc/run", "a folder to write to, got /proc/run, which cannot be written"),
    ],
)
def test_a_workdir_that_cannot_be_one_is_one_line(command, tmp_path, monkeypatch, workdir, message):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    status, _, err = command(train, "--config=quickstart", f"--workdir={workdir}")
    assert (status, err) == (2, f"error: --workdir: expected {message}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=-1", "optimizer.learning_rate: expected a number in [0, inf)"),
        ("optimizer.learning_rate=inf", "optimizer.learning_rate: expected a number in [0, inf)"),
        ("augment.rotation=-5", "augment.rotation: expected a number in [0, 360], got -5.0"),
    ],
)
def test_values_are_checked_before_a_folder_is_made(command, tmp_path, override, message):
    folder = tmp_path / "run"
    status, _, err = command(
        train, "--config=quickstart", f"--workdir={folder}", f"--config.{override}"
    )
    assert status == 2
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not folder.exists()


FAILS = """
import threading, time
from jaxattn import cli, signals
from jaxattn.errors import InputError
signals.install()
def main(argv):
    threading.Thread(target=time.sleep, args=(600,)).start()
    print("some steps")
    raise InputError("the disk is full")
cli.run_main(main)
"""


def test_a_program_that_fails_waits_for_no_thread():
    """As of a library that waits for a save which has failed."""
    command = [sys.executable, "-c", FAILS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "some steps\n",
        "error: the disk is full\n",
    )
