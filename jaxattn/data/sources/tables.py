"""CSV files that other people wrote: read strictly, and say exactly where one is wrong."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxattn.errors import InputError, suggestion


@dataclasses.dataclass(frozen=True)
class CsvRow:
    """One row of a CSV file.

    Attributes:
        path: The file.
        row: Number of the line in the file; the header is row 1.
        fields: Column name to text, stripped of blanks around it.
    """

    path: Path
    row: int
    fields: Mapping[str, str]

    def __getitem__(self, field: str) -> str:
        return self.fields[field]

    def error(self, field: str, wanted: str) -> InputError:
        """Returns the error that says that ``field`` of this row is not what was wanted."""
        return InputError(
            f"{self.path}, row {self.row}, {field}: given {self.fields[field]!r}, wanted {wanted}"
        )

    def text(self, field: str) -> str:
        """Returns a field that must not be empty.

        Raises:
            InputError: It is empty.
        """
        if not self.fields[field]:
            raise self.error(field, "a name")
        return self.fields[field]

    def choice(self, field: str, known: Sequence[str]) -> str:
        """Returns a field that must be one of ``known``.

        Raises:
            InputError: It is none of them.
        """
        if self.fields[field] not in known:
            wanted = f"one of {', '.join(known)}"
            near = suggestion(self.fields[field], known)
            raise self.error(field, wanted + near if "mean" in near else wanted)
        return self.fields[field]

    def number(self, field: str, low: int, high: int) -> float:
        """Returns a field that must be a number in ``[low, high]``.

        Raises:
            InputError: It is no number, or outside.
        """
        try:
            value = float(self.fields[field])
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise self.error(field, f"a number from {low} to {high}")
        return value

    def hot(self, fields: Sequence[str]) -> list[str]:
        """Returns those of the fields that are 1.

        Raises:
            InputError: One is neither 0 nor 1.
        """
        values = {field: self.number(field, 0, 1) for field in fields}
        for field, value in values.items():
            if value not in (0, 1):
                raise self.error(field, "0 or 1")
        return [field for field, value in values.items() if value]


def read_table(path: Path, columns: Sequence[str], *, has_header: bool = True) -> list[CsvRow]:
    """Reads a comma-separated file.

    A byte order mark, columns beyond those asked for, blank lines and blanks around a field are
    accepted; blanks inside a column's name read as underscores.

    Args:
        path: The file, UTF-8.
        columns: Columns that it must have; all of them, in order, where it does not name them.
        has_header: Whether the first row names the columns.

    Returns:
        Its rows, at least one.

    Raises:
        InputError: The file cannot be read, is empty, is not UTF-8, lacks a column, or has a row
            with too few or too many fields.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    header: list[str] = [] if has_header else list(columns)
    lines = []
    try:
        for values in reader:
            values = [value.strip() for value in values]
            if not any(values):
                continue
            if not header:
                header = [value.replace(" ", "_") for value in values]
                _check_header(path, header, columns)
            elif len(values) != len(header):
                raise InputError(
                    f"{path}, row {reader.line_num}: given {len(values)} fields, wanted "
                    f"{len(header)} as in the header ({', '.join(header)})"
                )
            else:
                lines.append(CsvRow(path, reader.line_num, dict(zip(header, values, strict=True))))
    except csv.Error as error:
        raise InputError(
            f"{path}, row {reader.line_num}: no CSV ({error}), wanted comma-separated fields"
        ) from error
    if not lines:
        given = "only a header" if header else "an empty file"
        raise InputError(f"{path}: given {given}, wanted rows with {', '.join(columns)}")
    return lines


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, row {row}: byte {error.object[error.start]:#04x} is not UTF-8, "
            "wanted a UTF-8 file"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), wanted a CSV file") from error


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in header]
    if not missing:
        return
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and delimiter in header[0]:
            raise InputError(f"{path}, row 1: given fields separated by {name}, wanted commas")
    raise InputError(
        f"{path}, row 1: given the columns {', '.join(header)}, wanted also {', '.join(missing)}"
    )
