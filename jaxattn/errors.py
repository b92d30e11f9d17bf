"""The one error for bad input."""

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """A file, field or option given by the user is wrong.

    The message names it, says what was expected and what was given, see `invalid`. Command lines
    print it without a traceback and exit with status 2. What is longer than ``longest``, as names
    out of a damaged file can be, is cut in the middle.
    """

    def __init__(self, message: str, longest: int = 1400):
        cut = len(message) > longest
        super().__init__(f"{message[:900]}…{message[-499:]}" if cut else message)


def invalid(field: str, expected: str, given: object) -> InputError:
    """The error for a value that is wrong: ``crops.size: expected at most 96x96, got 224x224``.

    Args:
        field: Name of the config field, command-line option, file or column.
        expected: What it must be, as a noun phrase.
        given: What it is; shown as it prints.
    """
    return InputError(f"{field}: expected {expected}, got {_cut(str(given), 1000)}")


def listed(names: Sequence[str], most: int = 10, separator: str = ", ") -> str:
    """Names in a message: all of them, or the first ones and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def unknown(field: str, given: object, known: Iterable[str]) -> InputError:
    """The error for an unknown name; suggests the nearest, or lists the known ones."""
    known = sorted(known)
    near = difflib.get_close_matches(str(given), known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    names = "a known name" if near and len(known) > 12 else f"one of {', '.join(known)}"
    return invalid(field, f"{names}{hint}", _cut(repr(given), 200))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
