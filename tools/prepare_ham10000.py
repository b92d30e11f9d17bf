"""Makes a data set of HAM10000's public files, in any of the layouts they are handed out in.

    python tools/prepare_ham10000.py --source=DIR --out=DIR [--size=N] [--skip-bad] [--overwrite]

DIR is a folder with the Kaggle, the Harvard Dataverse or the ISIC 2018 Task 3 files, unpacked; what
each looks like is in `jaxattn.data.sources.ham10000`. Reads every image to its end, writes
ArrayRecord files that TFDS and `jaxattn.data.tfds.reader.load` read, and says what it found, also in
OUT/report.json.
"""

from pathlib import Path

from absl import flags

from jaxattn.data.sources import ham10000
from jaxattn.data.tfds import prepare
from jaxattn.cli import run_main


def main(argv: list[str]) -> None:
    """Reads the folder, writes the data set, prints the report."""
    del argv
    prepare.write(ham10000.read(Path(flags.FLAGS.source)))


if __name__ == "__main__":
    prepare.define_flags()
    run_main(main)
