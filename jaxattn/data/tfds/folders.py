"""Folders that are written beside a data set and take its place when they are whole.

A process that is killed leaves its folder behind; the next one for the same data set removes it, or
finishes the exchange of an old data set for a new one. A folder in use is locked, and the lock ends
with its process.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from jaxattn.data import fingerprint
from jaxattn.errors import invalid

_OLD = ".old"


@contextlib.contextmanager
def temporary(out: Path, kind: str = "incomplete") -> Iterator[Path]:
    """A new folder beside ``out``, locked, and removed at the end unless it was moved.

    Args:
        out: The data set's folder.
        kind: Part of its name, ``.OUT.KIND-...``.

    Raises:
        InputError: The folder cannot be created.
    """
    make(out.parent)
    folder = out.with_name(f".{out.name}.{kind}-{uuid.uuid4().hex[:8]}")
    make(folder)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def make(folder: Path) -> None:
    """Creates a folder to write to, with its parents.

    Raises:
        InputError: It cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        given = f"{folder}, which cannot be created ({error.strerror})"
        raise invalid("out", "a folder to write to", given) from error


def recover(out: Path, kinds: Collection[str] = ("incomplete",)) -> None:
    """Removes what killed processes left beside ``out``, or finishes their exchange.

    Args:
        out: The data set's folder.
        kinds: Of temporary folders to look at.

    Raises:
        InputError: Another process writes the same data set.
    """
    if not out.parent.is_dir():
        return
    prefixes = tuple(f".{out.name}.{kind}-" for kind in kinds)
    left = sorted(path for path in out.parent.iterdir() if path.name.startswith(prefixes))
    for path in left:
        if _is_locked(path):
            raise invalid("out", "a data set that no other process is preparing", f"{out} ({path})")
    for path in left:
        if path.name.endswith(_OLD) and not out.exists():
            new = path.with_name(path.name.removesuffix(_OLD))
            (new if (new / fingerprint.FILE).is_file() else path).rename(out)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def exchange(folder: Path, out: Path) -> None:
    """Renames a finished folder to ``out``; an old data set of that name is deleted afterwards.

    Killed in between, `recover` finishes it.
    """
    old = folder.with_name(folder.name + _OLD)
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _is_locked(folder: Path) -> bool:
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False
