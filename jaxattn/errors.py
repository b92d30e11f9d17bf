"""The one error for bad input, and how the command lines show it."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A file, field or option that the user gave is wrong.

    The message is one sentence that names the file or field, says what was given and what was
    wanted. Command lines print it without a traceback and exit with status 2.
    """


def suggestion(given: str, known: Iterable[str]) -> str:
    """Returns ``'; did you mean X?'`` for the nearest known name, else the list of all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(given, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
