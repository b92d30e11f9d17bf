"""Prepares derm7pt (the seven-point checklist data set) for training.

    python tools/prepare_derm7pt.py --source=release_v0 --out=DIR [--size=N] [--skip-bad]
        [--overwrite]

Dermoscopic images in six of HAM10000's classes, mapped as in Gessert et al. 2019, with the official
parts, see `jaxattn.data.sources.derm7pt`. The same as ``tools/prepare.py --dataset=derm7pt``.
"""

from jaxattn import cli
from jaxattn.data.tfds import prepare

if __name__ == "__main__":
    prepare.define_flags()
    cli.run_main(lambda argv: prepare.prepare("derm7pt"))
