"""Files that are whole or not there, and checksums of those that others write.

A file is written under a temporary name in the same folder, flushed to the disk and renamed: after
a crash a reader finds the old file or the new one, never a part.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxattn.errors import InputError, invalid

#: Ends the names of files and folders that are not complete, or not wanted any more.
PART, DELETED = ".part", ".deleted"

#: Errors of the machine rather than of the program: full, read-only or failing disks, limits.
MACHINE_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EMFILE", "ENFILE", "EROFS", "EACCES", "EPERM"),
        *("EIO", "ESTALE", "ENOTDIR", "ENAMETOOLONG", "ELOOP", "ENODEV"),
    )
)


def expanded(path: str) -> str:
    """A path with the user's home for a ``~`` at its start."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:  # there is no such user
        return path


def unwritable(path: Path, error: Exception) -> InputError:
    """The error for a file or folder that cannot be written, in one line."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return invalid(str(path), "a place that can be written", " ".join(reason.split())[:300])


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write; at the end the file there takes the place of ``path``.

    Creates the folder. What an interrupted write left behind ends in ``.part``; `clean` removes it.

    Raises:
        InputError: The file cannot be written; the old one is as it was.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file of UTF-8, see `replacing`."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, see `replacing`."""
    write_text(path, json.dumps(value, indent=2, default=float, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)


def delete(folder: Path) -> None:
    """Deletes a folder; interrupted, it leaves one that ends in ``.deleted``, never a part."""
    doomed = folder.with_name(folder.name + DELETED)
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def clean(folder: Path) -> None:
    """Removes what interrupted writes and deletions left in a folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.endswith((PART, DELETED)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file below a folder, by its path there; flushes them to the disk."""
    with ThreadPoolExecutor(8) as pool:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        sums = pool.map(_synced_checksum, paths)
        found = {str(p.relative_to(folder)): value for p, value in zip(paths, sums, strict=True)}
    for path in folder.rglob("*"):
        if path.is_dir():
            sync(path)
    sync(folder)
    return found


def damage(folder: Path, wanted: Mapping[str, str]) -> str:
    """What is wrong with the files below a folder, '' if nothing is.

    Args:
        folder: The folder.
        wanted: What `checksums` found; further files do not matter.
    """

    def check(name: str) -> str:
        try:
            same = _checksum(folder / name) == wanted[name]
        except OSError as error:
            return f"{name}: {error.strerror}"
        return "" if same else f"{name} has changed"

    with ThreadPoolExecutor(8) as pool:
        return next(filter(None, pool.map(check, wanted)), "")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synced_checksum(path: Path) -> str:
    sync(path)
    return _checksum(path)


@contextlib.contextmanager
def plain(folder: Path) -> Iterator[Path]:
    """The absolute path of a folder, without characters that Orbax takes for a pattern.

    Orbax looks for its own files with unescaped globs. A folder below one called ``exp [1]`` is
    reached through a symbolic link instead, which exists meanwhile.
    """
    folder = folder.absolute()
    if not set("[]*?\\") & set(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="jaxattn-") as temporary:
        link = Path(temporary, "folder")
        link.symlink_to(folder, target_is_directory=True)
        yield link
