"""Makes a data set of derm7pt's (the seven-point checklist's) official folder.

    python tools/prepare_derm7pt.py --source=release_v0 --out=DIR [--size=N] [--skip-bad]
        [--overwrite]

Dermoscopic images in six of HAM10000's classes, as Gessert et al. 2019 map them, with the official
parts; what is looked for is in `jaxattn.data.sources.derm7pt`.
"""

from pathlib import Path

from absl import flags

from jaxattn.data.sources import derm7pt
from jaxattn.data.tfds import prepare
from jaxattn.cli import run_main


def main(argv: list[str]) -> None:
    """Reads the folder, writes the data set, prints the report."""
    del argv
    prepare.write(derm7pt.read(Path(flags.FLAGS.source)))


if __name__ == "__main__":
    prepare.define_flags()
    run_main(main)
