"""Image files by name: files, folders and glob patterns."""

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from PIL import Image

from jaxattn.data.images import FORMATS

#: How the names end of what public data sets keep beside their images.
NOT_IMAGES = ("_superpixels", "_segmentation")


def find(given: Sequence[str]) -> tuple[list[Path], int]:
    """Finds images.

    Args:
        given: Files, folders and glob patterns (``**`` for any folders). A name that exists is not
            a pattern. Files are taken as they are; in folders, at any depth, and among what a
            pattern matches, hidden files, masks and superpixels of public data sets, and what is no
            image by its name are skipped.

    Returns:
        The files, each once, in the order given and by name in folders; and how many were skipped.
        A name without a file is among them, to be reported like a file that cannot be read.
    """
    found: dict[Path, None] = {}
    skipped: set[Path] = set()
    suffixes = _suffixes()
    for name in given:
        path = Path(name).expanduser()
        matches: list[Path] = []
        if glob.has_magic(name) and not os.path.lexists(path):
            # Path.glob takes no absolute patterns.
            matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
        if not matches and not path.is_dir():
            found[path] = None
            continue
        for match in matches or [path]:
            for file in _walk(match) if match.is_dir() else [match]:
                if _is_image(file, suffixes):
                    found[file] = None
                else:
                    skipped.add(file)
    return list(found), len(skipped - found.keys())


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, through links too; one that cannot be listed is itself a file."""
    failed: list[Path] = []
    seen = set()
    for place, folders, files in os.walk(
        folder, followlinks=True, onerror=lambda error: failed.append(Path(error.filename))
    ):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        yield from (Path(place, name) for name in sorted(files))
    yield from failed


def _suffixes() -> Collection[str]:
    Image.init()
    kinds = {*FORMATS, "MPO"}
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds}


def _is_image(path: Path, suffixes: Collection[str]) -> bool:
    if path.name.startswith(".") or path.stem.endswith(NOT_IMAGES):
        return False
    if path.suffix or not path.is_file():
        return path.suffix.lower() in suffixes or path.is_dir()
    try:
        with Image.open(path, formats=FORMATS):  # reads the header
            return True
    except Exception:  # what PIL raises for another file has no common base
        return False
