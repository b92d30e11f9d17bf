"""One process at a time in a folder."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from jaxattn.errors import invalid
from jaxattn.files import unwritable

NAME = "lock"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Holds a folder, which exists, or refuses.

    The file ``lock`` names the holder. The system releases it when its process ends, however it
    ends, so that what a killed process left behind holds nothing.

    Raises:
        InputError: Another process holds the folder, or it cannot be written.
    """
    path = folder / NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        _lock(descriptor, path)
        with contextlib.suppress(OSError):  # on a full disk, a holder without a name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_me()).encode() + b"\n", 0)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise invalid(str(path.parent), "no other process in it", _holder(path)) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise unwritable(path, error) from error
        print(f"{path.parent}: no locks on this file system; start no second process in it")


def _me() -> dict[str, str | int]:
    now = datetime.datetime.now().astimezone()
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": now.isoformat(timespec="seconds"),
    }


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "one that has just started"
