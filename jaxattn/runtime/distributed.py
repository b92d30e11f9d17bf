"""Joins the processes of several hosts into one run, and ends them together.

JAX does the work: `jax.distributed`, its collectives and its agreement on when to stop. Here is
only what says clearly what is missing, who is waited for, and whose process has ended.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from jaxattn import signals
from jaxattn.errors import InputError, invalid

#: Variables of an explicit coordinator; JAX finds those of Slurm, Open MPI, Kubernetes and Cloud
#: TPU by itself.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

#: Seconds to wait for the other processes at the start (``JAXATTN_START_TIMEOUT``); seconds
#: without a sign of life after which a process counts as ended.
START_TIMEOUT = 300
SILENCE = 30.0


@contextlib.contextmanager
def joined(distributed: bool) -> Iterator[None]:
    """Makes this process one of several for a while, if ``distributed``.

    To be entered before anything is computed. If another process ends before its time, this one
    ends too, within a minute, with exit status `signals.STOPPED`: the same command, started in
    every process, resumes.

    Raises:
        InputError: A variable is missing or wrong, or the others did not come.
    """
    if not distributed:
        yield
        return
    _initialize()
    signals.share()
    threading.Thread(target=_watch_peers, name="peers", daemon=True).start()
    try:
        yield
    except InputError as error:
        _end(f"error: {error}", 2)
    except signals.Stopped:
        raise
    except (jax.errors.JaxRuntimeError, ConnectionError, TimeoutError) as error:
        time.sleep(1)  # a process that was told to end says so itself
        _end(f"stopped: a collective failed ({str(error).splitlines()[0][:200]})", signals.STOPPED)


def meet() -> None:
    """Waits for all processes and connects their devices; to be called once devices are set up.

    Gloo, which connects CPUs, gives up after 30 s: compiling takes some processes longer.
    """
    from jax._src.distributed import global_state

    if global_state.client is not None:
        global_state.client.wait_at_barrier("jaxattn/meet", START_TIMEOUT * 1000)
        multihost_utils.sync_global_devices("jaxattn/meet")


def _initialize() -> None:
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    timeout = int(os.environ.get("JAXATTN_START_TIMEOUT", START_TIMEOUT))
    try:
        if given:
            address, count, index = _explicit(given)
            place = f"process {index} of {count}: waiting for the others at {address}"
            print(place, file=sys.stderr, flush=True)
            jax.distributed.initialize(
                address,
                count,
                index,
                cluster_detection_method="deactivate",
                initialization_timeout=timeout,
            )
        else:
            jax.distributed.initialize(initialization_timeout=timeout)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise invalid(
            "--distributed",
            f"Slurm, Open MPI, Kubernetes, Cloud TPU, or {', '.join(VARIABLES)} in every process",
            reason,
        ) from error


def _explicit(given: dict[str, str]) -> tuple[str, int, int]:
    """Address, number of processes and index of this one from ``VARIABLES``."""
    for name in VARIABLES:
        if name not in given:
            raise invalid(name, "a value, as the others are set", "none")
        if name != VARIABLES[0] and not given[name].isdecimal():
            raise invalid(name, "a whole number", repr(given[name]))
    address, count, index = given[VARIABLES[0]], int(given[VARIABLES[1]]), int(given[VARIABLES[2]])
    if not address.rpartition(":")[2].isdecimal() or ":" not in address:
        raise invalid(VARIABLES[0], "HOST:PORT of process 0", repr(address))
    if not 0 <= index < count:
        raise invalid(VARIABLES[2], f"0 to {count - 1}, as {VARIABLES[1]}={count}", index)
    return address, count, index


def _watch_peers() -> None:
    """Ends this process when another one gives no more signs of life.

    JAX would, too, but after minutes and with a stack dump.
    """
    from jax._src.distributed import global_state  # the client has no public name

    me, count = global_state.process_id, global_state.num_processes
    seen: dict[int, tuple[str, float]] = {}
    beat = 0
    while (client := global_state.client) is not None:
        beat += 1
        peer = 0
        try:
            client.key_value_set(f"jaxattn/alive/{me}", str(beat), allow_overwrite=True)
            alive = dict(client.key_value_dir_get("jaxattn/alive/"))
        except Exception:  # process 0, which keeps the values, does not answer
            alive = {}
        now = time.monotonic()
        for peer in range(count):
            value = alive.get(f"jaxattn/alive/{peer}", "")
            if peer not in seen or (value and value != seen[peer][0]):
                seen[peer] = value, now
        silent = [p for p in range(count) if p != me and now - seen[p][1] > SILENCE]
        if silent and global_state.client is not None:
            _end(f"stopped: process {silent[0]} of {count} has ended", signals.STOPPED)
        time.sleep(2)


def _end(line: str, status: int) -> None:
    """Ends at once: leaving in order would wait for the others."""
    print(f"{line}; {signals.hint()}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)
