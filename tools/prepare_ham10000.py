"""Prepares HAM10000 for training, from any of its public layouts.

    python tools/prepare_ham10000.py --source=DIR --out=DIR [--size=N] [--skip-bad] [--overwrite]

DIR holds the unpacked files of Kaggle, the Harvard Dataverse or ISIC 2018 Task 3, see
`jaxattn.data.sources.ham10000`. The rest is as in ``tools/prepare.py --dataset=ham10000``.
"""

from jaxattn import cli
from jaxattn.data.tfds import prepare

if __name__ == "__main__":
    prepare.define_flags()
    cli.run_main(lambda argv: prepare.prepare("ham10000"))
