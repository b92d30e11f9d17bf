"""The one error for bad input, and how the command lines show it."""

import difflib
import sys
from collections.abc import Callable, Iterable

from absl import app, flags, logging


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


def invalid(field: str, expected: str, given: object) -> InputError:
    """The error for a value that is wrong: ``crops.size: expected at most 96x96, got 224x224``.

    Args:
        field: Name of the config field, command-line option, file or column.
        expected: What it must be, as a noun phrase.
        given: What it is; shown as it prints.
    """
    return InputError(f"{field}: expected {expected}, got {given}")


def unknown(field: str, given: object, known: Iterable[str]) -> InputError:
    """The error for a name that is none of the known ones; suggests the nearest, else lists all."""
    known = sorted(known)
    near = difflib.get_close_matches(str(given), known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return invalid(field, f"one of {', '.join(known)}{hint}", repr(given))


def run_main(main: Callable[[list[str]], object]) -> None:
    """Runs a command line: parses absl flags, calls ``main(argv)`` and exits.

    An `InputError` shows as ``error: ...`` on stderr with exit status 2, Ctrl-C exits with 130.
    """

    def guarded(argv: list[str]) -> int:
        try:
            if argv[1:]:
                raise InputError(f"given the arguments {' '.join(argv[1:])}, wanted only flags")
            main(argv)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        return 0

    logging.set_verbosity(logging.WARNING)
    app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; a wrong one is one sentence, and not the traceback of a config's override."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        # ml_collections wraps what a config file raised, traceback and all, into a flags.Error.
        text = str(error).rpartition("InputError: ")[2].strip().split("\n\n")[0]
        if isinstance(error, AttributeError | KeyError):
            text = text.strip("\"'").replace("\\'", "'").replace("\\n", "; ")
            text = f"config has no field {text}"
        print("error:", " ".join(text.split()), file=sys.stderr)
        sys.exit(2)
