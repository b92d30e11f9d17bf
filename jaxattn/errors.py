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
