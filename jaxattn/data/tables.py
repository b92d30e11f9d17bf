"""A strict reader of CSV files from elsewhere; errors name the row and the column."""

import csv
import dataclasses
import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jaxattn.errors import InputError, invalid, unknown


@dataclasses.dataclass(frozen=True)
class CsvRow:
    """One row of a CSV file.

    Attributes:
        path: The file.
        row: Number of the line in the file; the header is row 1.
        fields: Column name to text, without surrounding blanks.
    """

    path: Path
    row: int
    fields: Mapping[str, str]

    def __getitem__(self, field: str) -> str:
        return self.fields[field]

    def error(self, field: str, expected: str) -> InputError:
        """The error for a wrong ``field`` of this row."""
        return invalid(self._place(field), expected, repr(self.fields[field]))

    def text(self, field: str) -> str:
        """A field that must not be empty.

        Raises:
            InputError: It is empty.
        """
        if not self.fields[field]:
            raise self.error(field, "a name")
        return self.fields[field]

    def choice(self, field: str, known: Collection[str]) -> str:
        """A field that must be one of ``known``.

        Raises:
            InputError: It is none of them.
        """
        if self.fields[field] not in known:
            raise unknown(self._place(field), self.fields[field], known)
        return self.fields[field]

    def number(self, field: str, low: int, high: int) -> float:
        """A field that must be a number in ``[low, high]``.

        Raises:
            InputError: It is no number, or outside.
        """
        try:
            value = float(self.fields[field])
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise self.error(field, f"a number in [{low}, {high}]")
        return value

    def hot(self, fields: Sequence[str]) -> list[str]:
        """Those of the fields that are 1.

        Raises:
            InputError: One is neither 0 nor 1.
        """
        values = {field: self.number(field, 0, 1) for field in fields}
        for field, value in values.items():
            if value not in (0, 1):
                raise self.error(field, "0 or 1")
        return [field for field, value in values.items() if value]

    def _place(self, field: str) -> str:
        return f"{self.path}, row {self.row}, {field}"


def read_table(path: Path, columns: Sequence[str], *, has_header: bool = True) -> list[CsvRow]:
    """Reads a comma-separated file.

    Accepts a byte order mark, further columns, blank lines and blanks around a field; blanks inside
    a column's name read as underscores.

    Args:
        path: The file, UTF-8.
        columns: Columns that it must have; without a header all of its columns, in order.
        has_header: Whether the first row names the columns.

    Returns:
        Its rows, at least one.

    Raises:
        InputError: The file cannot be read, is empty, is not UTF-8, lacks a column, or has a row
            with too few or too many fields.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    header: list[str] = [] if has_header else list(columns)
    rows = []
    try:
        for values in reader:
            values = [value.strip() for value in values]
            if not any(values):
                continue
            if not header:
                header = [value.replace(" ", "_") for value in values]
                _check_header(path, header, columns)
            elif len(values) != len(header):
                expected = f"{len(header)} fields ({', '.join(header)})"
                raise invalid(f"{path}, row {reader.line_num}", expected, len(values))
            else:
                rows.append(CsvRow(path, reader.line_num, dict(zip(header, values, strict=True))))
    except csv.Error as error:
        place = f"{path}, row {reader.line_num}"
        raise invalid(place, "comma-separated fields", f"no CSV ({error})") from error
    if not rows:
        given = "only a header" if header else "an empty file"
        raise invalid(str(path), f"rows with {', '.join(columns)}", given)
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = error.object[: error.start].count(b"\n") + 1
        given = f"byte {error.object[error.start]:#04x}"
        raise invalid(f"{path}, row {row}", "UTF-8", given) from error
    except OSError as error:
        given = f"a file that cannot be read ({error.strerror})"
        raise invalid(str(path), "a CSV file", given) from error


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in header]
    if not missing:
        return
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and delimiter in header[0]:
            raise invalid(f"{path}, row 1", "fields separated by commas", name)
    raise invalid(f"{path}, row 1", f"the columns {', '.join(missing)}", ", ".join(header))
