"""Prepares derm7pt (the seven-point checklist data set) for training.

    python tools/prepare_derm7pt.py --source=release_v0 --out=DIR [--size=N] [--skip-bad]
        [--overwrite]

Dermoscopic images in six of HAM10000's classes, mapped as in Gessert et al. 2019, with the official
parts, see `jaxattn.data.sources.derm7pt`. The same as ``python -m jaxattn.prepare
--dataset=derm7pt``.
"""

from jaxattn import cli, prepare

if __name__ == "__main__":
    prepare.define_flags(dataset="derm7pt")
    cli.run_main(prepare.main)
