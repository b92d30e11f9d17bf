"""Several processes on one machine, over loopback, as on several hosts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxattn import checkpoints, run_dir, signals

ROOT = Path(__file__).parents[2]
SMALL = (
    "--plugin=tests.tiny",
    f"--config={ROOT}/configs/quickstart.py",
    "--config.dataset.num_images=140",
    "--config.dataset.image_size=32",
    "--config.model.name=tiny",
    "--config.model.width=8",
    "--config.optimizer.name=sgd",  # Adam makes steps of the rounding in a bias' zero gradient
    "--config.batch_size=16",
    "--config.evaluation.batch_size=16",
    "--config.log_every_steps=1",
)
SHORT = ("--config.epochs=2", "--config.steps_per_epoch=4")
LONG = ("--config.epochs=2", "--config.steps_per_epoch=200")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def start(folder, arguments, count=1, devices=1):
    """Starts the processes of one run; together they have ``count * devices`` devices."""
    address = f"127.0.0.1:{free_port()}"
    started = []
    for index in range(count):
        variables = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        command = [sys.executable, "-m", "jaxattn.train", *SMALL, *arguments]
        command += [f"--workdir={folder}", f"--config.cpu_devices={devices}"]
        if count > 1:
            command.append("--distributed")
        started.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **(variables if count > 1 else {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def end(started):
    """Waits for processes; returns their exit statuses and what they said."""
    said = [process.communicate()[0] for process in started]
    return [process.returncode for process in started], said


def parameters(folder):
    variables, step = checkpoints.read_variables(folder / run_dir.CHECKPOINTS, "latest")
    return jax.tree.leaves(variables), step


def steps_logged(folder):
    path = folder / run_dir.LOG
    lines = path.read_text().splitlines() if path.exists() else []
    return [e["step"] for e in map(json.loads, lines) if e["kind"] == "train"]


def wait_for_steps(folder, count, started):
    deadline = time.monotonic() + 600
    while len(steps_logged(folder)) < count:
        assert all(process.poll() is None for process in started), end(started)
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_equal_one_with_as_many_devices(tmp_path, count):
    """Sums over devices may be added in another order: 1e-4 after 8 steps."""
    for folder, processes in (("one", 1), ("many", count)):
        started = start(tmp_path / folder, SHORT, processes, count // processes)
        statuses, said = end(started)
        assert statuses == [0] * processes, said
    (one, step), (many, again) = parameters(tmp_path / "one"), parameters(tmp_path / "many")
    assert step == again == 8
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert steps_logged(tmp_path / "many") == list(range(1, 9))


def test_all_stop_at_one_step_and_one_process_goes_on(tmp_path):
    started = start(tmp_path / "run", LONG, 2)
    wait_for_steps(tmp_path / "run", 2, started)
    started[1].send_signal(signal.SIGTERM)  # the scheduler tells one of them
    statuses, said = end(started)
    assert statuses == [signals.STOPPED] * 2, said
    step = parameters(tmp_path / "run")[1]
    assert step == max(steps_logged(tmp_path / "run")) < 400
    statuses, said = end(start(tmp_path / "run", LONG, 1, devices=2))
    assert statuses == [0], said
    assert f"resuming at step {step} of 400" in said[0]
    assert steps_logged(tmp_path / "run") == list(range(1, 401))


def test_a_process_that_is_killed_ends_the_others_within_a_minute(tmp_path):
    started = start(tmp_path / "run", (*LONG, "--config.epochs=100"), 2)
    wait_for_steps(tmp_path / "run", 2, started)
    started[1].kill()
    killed = time.monotonic()
    statuses, said = end(started)
    assert time.monotonic() - killed < 60
    assert statuses[0] == signals.STOPPED, said
    assert f"the same command resumes {tmp_path / 'run'}" in said[0]
    assert "Traceback" not in said[0]
