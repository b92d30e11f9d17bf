"""Prepares one of the ISIC challenges of 2016 to 2020 for training.

    python tools/prepare_isic.py --year=2017 --source=DIR --out=DIR [--size=N] [--skip-bad]
        [--overwrite]

DIR holds the challenge's folders and tables, unpacked, under their own names, see
`jaxattn.data.sources`. The official parts are kept: ``--config.split.strategy=official``
trains, validates and tests on them. The same as ``python -m jaxattn.prepare --dataset=isic2017``.
"""

from absl import flags

from jaxattn import cli, prepare


def main(argv: list[str]) -> None:
    """Prepares the challenge of ``--year``."""
    flags.FLAGS["dataset"].value = f"isic{flags.FLAGS.year}"
    prepare.main(argv)


if __name__ == "__main__":
    prepare.define_flags()
    flags.DEFINE_enum(
        "year", None, ["2016", "2017", "2018", "2019", "2020"], "Which challenge.", required=True
    )
    cli.run_main(main)
