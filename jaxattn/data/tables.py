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
        return invalid(self.place(field), expected, repr(self.fields[field]))

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
            raise unknown(self.place(field), self.fields[field], known)
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

    def place(self, field: str) -> str:
        """What errors call a field of this row."""
        return f"{self.path}, row {self.row}, {field}"


def read_table(
    path: Path, columns: Sequence[str], *, likely: Sequence[str] = (), has_header: bool = True
) -> list[CsvRow]:
    """Reads a table: fields separated by commas, tabs or semicolons, whichever the header has.

    Accepts a byte order mark, further columns, blank lines and blanks around a field; blanks inside
    a column's name read as underscores.

    Args:
        path: The file, UTF-8.
        columns: Columns that it must have; without a header all of its columns, in order.
        likely: Further columns that it may have.
        has_header: Whether the first row names the columns.

    Returns:
        Its rows, at least one.

    Raises:
        InputError: The file cannot be read, is empty, is not UTF-8, lacks a column, names one
            twice, or has a row with too few or too many fields.
    """
    text = _text(path)
    delimiter = _delimiter(text, (*columns, *likely))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
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
        raise invalid(place, "fields separated by commas or tabs", f"no CSV ({error})") from error
    if not rows:
        given = "only a header" if header else "an empty file"
        raise invalid(str(path), f"rows with {', '.join(columns)}", given)
    return rows


def column_names(path: Path, likely: Sequence[str]) -> list[str]:
    """The columns that a table has, as `read_table` calls them.

    Args:
        path: The file.
        likely: Columns that it may have: they tell its delimiter.

    Raises:
        InputError: See `read_table`.
    """
    return list(read_table(path, (), likely=likely)[0].fields)


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


def _delimiter(text: str, columns: Sequence[str]) -> str:
    """A comma, or what parts the first line into more of the columns.

    The Harvard Dataverse hands its tables out with tabs; spreadsheets write semicolons where the
    comma is a decimal point.
    """
    first = text.lstrip().partition("\n")[0]

    def named(delimiter: str) -> int:
        cells = (cell.strip().strip('"').replace(" ", "_") for cell in first.split(delimiter))
        return len(set(cells) & set(columns))

    return max(",\t;", key=named)


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    twice = {name for name in header if name and header.count(name) > 1}
    if twice:
        # The reader would have to guess which of them is meant.
        raise invalid(f"{path}, row 1", "each column once", f"{', '.join(sorted(twice))} twice")
    missing = [column for column in columns if column not in header]
    if missing:
        raise invalid(f"{path}, row 1", f"the columns {', '.join(missing)}", ", ".join(header))
