"""``python -m jaxattn COMMAND``."""

from jaxattn.cli import main

main()
