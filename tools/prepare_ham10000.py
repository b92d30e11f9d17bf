"""Prepares HAM10000 for training, from any of its public layouts.

    python tools/prepare_ham10000.py --source=DIR --out=DIR [--size=N] [--skip-bad] [--overwrite]

DIR holds the unpacked files of Kaggle, the Harvard Dataverse or ISIC 2018 Task 3, see
`jaxattn.data.sources.ham10000`. The same as ``python -m jaxattn.prepare --dataset=ham10000``.
"""

from jaxattn import cli, prepare

if __name__ == "__main__":
    prepare.define_flags(dataset="ham10000")
    cli.run_main(prepare.main)
