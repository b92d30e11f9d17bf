"""Prepares a public data set for training.

    python -m jaxattn.prepare --dataset=NAME --source=DIR --out=DIR [--size=N] [--skip-bad]
        [--overwrite] [--plugin=MODULE]

NAME is one of `jaxattn.data.sources.SOURCES`: ham10000, isic2016, isic2017, derm7pt, or what a
plugin registers. DIR holds the public files, unpacked; the modules in `jaxattn.data.sources` say
which. Reads every image completely, writes ArrayRecord files that TFDS and
`jaxattn.data.tfds.reader` read, and reports what it found, also in OUT/report.json.
"""

from pathlib import Path

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxattn import cli
from jaxattn.data.sources import SOURCES


def define_flags(dataset: str | None = None) -> None:
    """Defines the flags of the command line.

    Args:
        dataset: Default of --dataset; None if it must be given.
    """
    flags.DEFINE_string("dataset", dataset, "Name of the data set.", required=dataset is None)
    flags.DEFINE_string("source", None, "Folder with the public files.", required=True)
    flags.DEFINE_string("out", None, "Folder to write the data set to.", required=True)
    flags.DEFINE_integer(
        "size",
        None,
        "Shrink the shorter side to this many pixels; default: keep the original bytes.",
    )
    flags.DEFINE_bool(
        "skip-bad", False, "Leave out images that are missing, unlabelled or broken; list them."
    )
    flags.DEFINE_bool("overwrite", False, "Replace a data set in OUT.")
    cli.define_plugin_flag()


def main(argv: list[str]) -> None:
    """Prepares the data set, with a progress bar, and prints the report."""
    del argv
    from jaxattn.data.tfds import writer  # imports tensorflow_datasets

    out, skip_bad = flags.FLAGS.out, bool(flags.FLAGS["skip-bad"].value)
    index = SOURCES[flags.FLAGS.dataset](Path(flags.FLAGS.source))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        report = writer.write(
            index,
            Path(out),
            size=flags.FLAGS.size,
            skip_bad=skip_bad,
            overwrite=flags.FLAGS.overwrite,
            track=lambda items, what, total: progress.track(items, total, description=what),
        )
    _print(report)
    print(f"written to {out}; {out}/{writer.REPORT} lists everything")


def _print(report: dict) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table("class", "images", title=f"{report['name']} ({report['layout']} layout)")
    for name, count in report["classes"].items():
        table.add_row(name, str(count))
    table.add_section()
    for name, count in report.get("parts", {}).items():
        table.add_row(f"{name} part", str(count))
    for name in ("images", "lesions", "masks", "attributes"):
        if name in report:
            table.add_row(name, str(report[name]))
    console.print(table)
    for heading, verb in (("problems", "skipped"), ("notes", "noted")):
        for kind, found in report[heading].items():
            names = ", ".join(list(found)[:3]) + (", ..." if len(found) > 3 else "")
            console.print(f"{verb}: {len(found)} {kind.replace('_', ' ')}: {names}")


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
