"""Public files as they are downloaded: archives, unpacked while a data set is prepared."""

import contextlib
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from jaxattn.data.tfds import folders
from jaxattn.errors import InputError, invalid

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
#: Left free on the disk after unpacking, bytes.
_SPARE = 1 << 30


@contextlib.contextmanager
def unpacked(source: Path, out: Path) -> Iterator[Path]:
    """The folder of a source: itself, or a temporary one with what its archives hold.

    Args:
        source: A folder, perhaps with archives in it, or one archive. Of an archive ``NAME.zip``
            beside a folder ``NAME`` the folder is taken.
        out: The data set to prepare; the temporary folder lies beside it.

    Raises:
        InputError: An archive is damaged, encrypted or larger than the free disk.
    """
    archives = [source] if _is_archive(source) else _archives_in(source)
    if not archives:
        yield source
        return
    with folders.temporary(out.resolve(), "unpacked") as folder:
        if source.is_dir():
            _mirror(source, folder)
        for archive in archives:
            # Some hold their folder, some only its content.
            unpack(archive, folder / _stem(archive) if source.is_dir() else folder)
        yield _inner(folder) if not source.is_dir() else folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a ZIP or TAR archive; nothing outside the folder is written.

    Raises:
        InputError: It is damaged, encrypted or larger than the free disk.
    """
    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as zipped:
                _check_size(archive, sum(info.file_size for info in zipped.infolist()), folder)
                zipped.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                _check_size(archive, sum(member.size for member in tar), folder)
                tar.extractall(folder, filter="data")
    except InputError:
        raise
    except (
        *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError),
        *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
    ) as error:
        given = f"one that cannot be unpacked ({error})"
        raise invalid(str(archive), "a complete ZIP or TAR archive", given) from error


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(ENDINGS)


def _stem(archive: Path) -> str:
    ending = max((end for end in ENDINGS if archive.name.lower().endswith(end)), key=len)
    return archive.name[: -len(ending)]


def _archives_in(source: Path) -> list[Path]:
    """The archives of a folder that nobody has unpacked there."""
    if not source.is_dir():
        return []
    return [
        path
        for path in sorted(source.iterdir())
        if _is_archive(path) and path.name[0] != "." and not (source / _stem(path)).is_dir()
    ]


def _mirror(source: Path, folder: Path) -> None:
    """Links the files of one folder into another."""
    for place, _, names in os.walk(source):
        at = folder / Path(place).relative_to(source)
        at.mkdir(exist_ok=True)
        for name in names:
            if not name.lower().endswith(ENDINGS):
                (at / name).symlink_to((Path(place) / name).resolve())


def _inner(folder: Path) -> Path:
    """The only folder in a folder, if there is nothing else: archives often hold one."""
    inside = [path for path in folder.iterdir() if path.name != "__MACOSX" and path.name[0] != "."]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _check_size(archive: Path, size: int, folder: Path) -> None:
    folders.make(folder)
    free = shutil.disk_usage(folder).free - _SPARE
    if size > free:
        expected = f"an archive that fits on the disk ({max(free, 0) >> 20} MiB free)"
        raise invalid(str(archive), expected, f"{size >> 20} MiB")
