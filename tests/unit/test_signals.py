"""A signal ends a program at once where nothing is lost, else when it has saved."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxattn import signals

ROOT = Path(__file__).parents[2]

#: Computes in C, as a compilation does: no bytecode runs, so a Python handler would wait for ever.
PROGRAM = """
import hashlib, signal, sys, time
from jaxattn import signals
for number in signals.SIGNALS:
    ignored = number.name in sys.argv
    signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
signals.install()
signals.describe("the same command resumes")
def finish(): print("finished", flush=True)
def wait(): print("ready", flush=True); hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def start(body: str, *ignored: str) -> subprocess.Popen:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + body, *ignored],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout.readline() == "ready\n"
    return program


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_where_nothing_is_lost_it_ends_at_once(number):
    program = start("signals.release(finish); wait()")
    program.send_signal(number)
    out, err = program.communicate(timeout=60)
    assert program.returncode == 75 == os.EX_TEMPFAIL
    assert out == "finished\nstopped; the same command resumes\n"
    assert err.startswith(f"{number.name}: stopping")


def test_where_something_would_be_lost_it_is_saved_first():
    program = start(
        "signals.hold(); print('ready', flush=True)\n"
        "while not signals.requested(): time.sleep(0.01)\n"
        "print('saved', flush=True); signals.release(finish); print('never')"
    )
    program.send_signal(signal.SIGTERM)
    out, err = program.communicate(timeout=60)
    assert program.returncode == signals.STOPPED
    assert out == "saved\nfinished\nstopped; the same command resumes\n"
    assert "stopping after this step" in err


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_second_signal_ends_it_without_saving(number):
    program = start("signals.hold(); wait()")
    program.send_signal(number)
    assert "stopping after this step" in program.stderr.readline()
    program.send_signal(number)
    out, err = program.communicate(timeout=60)
    assert program.returncode == 128 + number
    assert (out, err) == ("", f"{number.name} again: ending at once\n")


def test_a_save_that_fails_is_an_error():
    program = start("signals.release(lambda: 1 / 0); wait()")
    program.send_signal(signal.SIGTERM)
    out, _ = program.communicate(timeout=60)
    assert program.returncode == 2
    assert out == "error: division by zero\n"


def test_a_signal_that_the_parent_ignores_stays_ignored():
    """As under nohup, or for a shell's job in the background."""
    program = start("wait()", "SIGINT")
    program.send_signal(signal.SIGINT)
    program.send_signal(signal.SIGTERM)
    _, err = program.communicate(timeout=60)
    assert program.returncode == signals.STOPPED
    assert err.startswith("SIGTERM")
