"""Ends a program on SIGTERM and SIGINT soon and without loss.

Python calls a handler only between two steps of the main thread, which may be minutes away while
XLA compiles. So a thread acts on signals: while nothing would be lost the program ends at once;
between `hold` and `release` it only learns that it is to stop. Needs no JAX, so that signals are
honoured while JAX is imported.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

#: Exit status of a program that a signal stopped and the same command goes on with: EX_TEMPFAIL of
#: sysexits.h, "the user is invited to retry". No Python error, crash or other signal gives it.
STOPPED = 75

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _State:
    """What the thread of the signals and the main thread know of each other."""

    lock = threading.RLock()
    received = False
    held = False
    finish: Callable[[], object] = staticmethod(lambda: None)
    hint = "the same command starts again"
    notify: Any = None  # JAX's own handler, which tells the other processes
    asked = 0


class Stopped(Exception):  # noqa: N818 (no error)
    """Raised where several processes agreed to stop."""


def install() -> None:
    """Starts to honour signals; to be called once, early, by the main thread of a program."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, a shell's background job
            signal.signal(number, _ignore)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()


def installed() -> bool:
    """Whether `install` was called."""
    return any(signal.getsignal(number) is _ignore for number in SIGNALS)


def share() -> None:
    """Goes on honouring signals after `jax.distributed.initialize`, now in all processes.

    JAX takes SIGTERM for itself. Its handler is called for both signals, and tells every process;
    `requested` is then true in all of them at the same call.
    """
    if not installed():
        return
    previous = ctypes.CDLL(None).signal
    previous.restype, previous.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    handler = previous(signal.SIGTERM, None)
    if handler not in (None, 0, 1):
        _State.notify = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    signal.signal(signal.SIGTERM, _ignore)
    hold()


def describe(hint: str) -> None:
    """Sets what a stopped program says: how to go on."""
    _State.hint = hint


def hint() -> str:
    """See `describe`."""
    return _State.hint


def hold() -> None:
    """From here on a signal would lose something: it is only remembered, see `requested`."""
    with _State.lock:
        _State.held = True


def release(finish: Callable[[], object]) -> None:
    """From here on a signal ends the program, after ``finish()``; so does one received before."""
    if _State.notify is not None:
        return  # several processes stop only where all have agreed to
    with _State.lock:
        _State.held, _State.finish = False, finish
        received = _State.received
    if received:
        _end()


def requested() -> bool:
    """Whether to stop now. With several processes, all have to ask equally often."""
    if _State.notify is None:
        return _State.received
    from jax.experimental import multihost_utils

    _State.asked += 1
    return multihost_utils.reached_preemption_sync_point(_State.asked)


def check() -> None:
    """With several processes, raises Stopped if all agreed to stop; see `requested`."""
    if _State.notify is not None and requested():
        raise Stopped


def _ignore(number: int, frame: Any) -> None:
    """The thread acts."""


def _watch(reader: int) -> None:
    while True:
        number = os.read(reader, 1)[0]
        if number not in SIGNALS:
            continue
        with _State.lock:
            again, _State.received = _State.received, True
            held = _State.held
        name = signal.Signals(number).name
        if again:
            _say(f"{name} again: ending at once")
            os._exit(128 + number)
        if held:
            _say(f"{name}: stopping after this step; a second signal ends at once")
            if _State.notify is not None:
                _State.notify(signal.SIGTERM)
        else:
            _say(f"{name}: stopping; a second signal ends at once")
            threading.Thread(target=_end, name="end", daemon=True).start()


def _say(text: str) -> None:
    os.write(2, f"{text}\n".encode())  # not through sys.stderr, which another thread may hold


def _end() -> NoReturn:
    """Ends without unwinding: what is on the disk is whole at any time."""
    status, line = STOPPED, f"stopped; {_State.hint}"
    try:
        _State.finish()
    except Exception as error:
        status, line = 2, f"error: {error}"
    try:
        if sys.stderr.isatty():
            _say("\x1b[?25h")  # a progress bar hides the cursor
        print(line, flush=True)
        sys.stderr.flush()
    finally:
        os._exit(status)
