"""``python -m tests.fuzz --inputs=10000``, see `tests.fuzz.run`."""

import sys

from tests.fuzz.run import main

if __name__ == "__main__":
    sys.exit(bool(main()))
