"""Makes a data set of the public files of the ISIC 2016 or the ISIC 2017 challenge.

    python tools/prepare_isic.py --year=2017 --source=DIR --out=DIR [--size=N] [--skip-bad]
        [--overwrite]

DIR is a folder with the challenge's folders and tables, unpacked, under their own names; which are
looked for is in `jaxattn.data.sources.isic`. The official parts are kept:
``--config.split.strategy=official`` trains, validates and tests on them.
"""

from pathlib import Path

from absl import flags

from jaxattn.data.sources import isic
from jaxattn.data.tfds import prepare
from jaxattn.cli import run_main


def main(argv: list[str]) -> None:
    """Reads the folder, writes the data set, prints the report."""
    del argv
    prepare.write(isic.read(Path(flags.FLAGS.source), flags.FLAGS.year))


if __name__ == "__main__":
    prepare.define_flags()
    flags.DEFINE_integer("year", None, "Which challenge: 2016 or 2017.", required=True)
    run_main(main)
