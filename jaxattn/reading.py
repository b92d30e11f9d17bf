"""Files from elsewhere, read as data: whatever is wrong with one is a single `InputError`.

Nothing here runs code, follows a path out of a file, or allocates more than a file can hold.
"""

import contextlib
import csv
import dataclasses
import json
import math
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxattn.errors import InputError, invalid, unknown

#: A packed file may unpack to so many times its size, and to so many bytes beside. Weights and
#: images hardly shrink; runs of zeros shrink a thousand times.
_MOST_UNPACKED = 64, 256 * 2**20
_LONGEST_REASON = 200


@contextlib.contextmanager
def reading(source: str | Path, expected: str) -> Iterator[None]:
    """The boundary of a reader: every exception in it becomes an `InputError` that names the file.

    Libraries that parse files raise whatever they stumble over (``zlib.error``, ``KeyError``,
    ``SystemError``), and say so nowhere; the exception itself stays attached as the cause.

    Args:
        source: The file, and where in it.
        expected: What it must be, as a noun phrase.

    Raises:
        InputError: Something in the block failed.
    """
    try:
        yield
    except InputError as error:
        if str(source) in str(error):
            raise
        raise InputError(f"{source}, {error}") from error
    except OSError as error:
        raise invalid(
            str(source), expected, f"a file that cannot be read ({reason(error)})"
        ) from error
    except Exception as error:
        raise invalid(str(source), expected, f"a damaged file ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """The first line of what an exception says, cut to a length that fits a message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines()]
    first = next(filter(None, lines), "") or type(error).__name__
    return first if len(first) <= _LONGEST_REASON else f"{first[:_LONGEST_REASON]}…"


@dataclasses.dataclass(frozen=True)
class Node:
    """A value of a JSON file; errors name the file and the value's place in it.

    Attributes:
        path: The file.
        field: Dotted names that lead to the value; '' for the whole file.
        value: What `json.loads` made of it.
    """

    path: Path
    field: str
    value: Any

    def error(self, expected: str) -> InputError:
        """The error for this value."""
        place = f"{self.path}, {self.field}" if self.field else str(self.path)
        return invalid(place, expected, shown(self.value))

    def __getitem__(self, name: str) -> "Node":
        """An entry of this object; of value None if it has none of that name."""
        return Node(self.path, f"{self.field}.{name}".lstrip("."), self.object().get(name))

    def __contains__(self, name: str) -> bool:
        return name in self.object()

    def object(self) -> dict[str, Any]:
        """The value, which must be a JSON object."""
        if not isinstance(self.value, dict):
            raise self.error("a JSON object")
        return self.value

    def entries(self) -> "dict[str, Node]":
        """The entries of the value, which must be an object."""
        return {name: self[name] for name in self.object()}

    def items(self) -> "list[Node]":
        """The items of the value, which must be a list."""
        if not isinstance(self.value, list):
            raise self.error("a list")
        return [Node(self.path, f"{self.field}[{i}]", each) for i, each in enumerate(self.value)]

    def text(self, known: Collection[str] = ()) -> str:
        """The value, which must be a string, and one of ``known`` if any are given."""
        if not isinstance(self.value, str):
            raise self.error("text")
        if known and self.value not in known:
            raise unknown(f"{self.path}, {self.field}", self.value, known)
        return self.value

    def number(self, low: float | int = -math.inf, high: float | int = math.inf) -> float | int:
        """The value, which must be a number in ``[low, high]``; NaN is none."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.error("a number")
        if not low <= self.value <= high:
            raise self.error(f"a number in [{low:g}, {high:g}]")
        return self.value

    def whole(self, low: int = 0, high: int = 2**53) -> int:
        """The value, which must be a whole number in ``[low, high]``."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.error("a whole number")
        if not low <= self.value <= high:
            raise self.error(f"a whole number in [{low}, {high}]")
        return self.value


def shown(value: Any) -> str:
    """A value of a file as an error shows it: in one line that is not too long."""
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


def read_json(path: Path, expected: str = "JSON") -> Node:
    """A JSON file.

    Args:
        path: The file, UTF-8.
        expected: What an error says that it must be.

    Raises:
        InputError: It cannot be read, is no JSON, or names an entry twice.
    """
    with reading(path, expected):
        return parse_json(path, path.read_text(encoding="utf-8"), expected)


def parse_json(path: Path, text: str, expected: str = "JSON", field: str = "") -> Node:
    """JSON that is part of a file, see `read_json`."""
    place = f"{path}, {field}" if field else str(path)
    with reading(place, expected):
        return Node(path, field, json.loads(text, object_pairs_hook=_once))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is named twice")
    return found


def unpacks_too_far(unpacked: int, packed: int) -> bool:
    """Whether so many bytes that unpack to so many are a decompression bomb."""
    times, spare = _MOST_UNPACKED
    return unpacked > times * packed + spare


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows of a CSV file that this library wrote.

    For tables from elsewhere see `jaxattn.data.tables`.

    Raises:
        InputError: It cannot be read, or a row has another number of fields than the header.
    """
    with reading(path, "the CSV that the run wrote"):
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
        columns = list(reader.fieldnames or ())
        if len(set(columns)) != len(columns):
            raise ValueError("a column is there twice")
        for i, row in enumerate(rows, start=2):
            if None in row or None in row.values():
                raise ValueError(f"row {i} has another number of fields than the header")
    return columns, rows


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive without members that are there twice, or are larger than it could hold.

    Members end where the archive says, so that checking the sizes it declares is enough.

    Raises:
        ValueError: One is.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(set(names)) != len(names):
            raise ValueError("a member is there twice")
        size = path.stat().st_size
        if any(member.compress_size > size for member in members):
            raise ValueError("a member is declared larger than the archive")
        unpacked = sum(member.file_size for member in members)
        if unpacks_too_far(unpacked, size):
            raise ValueError(f"it would unpack to {unpacked:,} bytes")
        yield archive


def read_npz(path: Path, expected: str = "a NumPy archive (.npz)") -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive, none of them pickled.

    Raises:
        InputError: It cannot be read, or an array's header does not fit the array.
    """
    with reading(path, expected):
        with open_zip(path) as archive:
            for member in archive.infolist():
                _check_header(archive, member)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raises ValueError if an array would not fill what its header makes NumPy allocate."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"{member.filename}: no array of a version that is known")
        shape, _, dtype = read(file)
        held = member.file_size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{member.filename}: Python objects")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"{member.filename}: a header of shape {shape} for {held} bytes")
