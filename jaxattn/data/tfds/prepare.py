"""The command lines ``tools/prepare*.py``: flags, progress and what they print."""

from pathlib import Path

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxattn.data.sources import SOURCES


def define_flags() -> None:
    """Defines --source, --out, --size, --skip-bad and --overwrite."""
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


def prepare(dataset: str) -> None:
    """Prepares a public data set as the flags say, with a progress bar, and prints the report.

    Args:
        dataset: One of `jaxattn.data.sources.SOURCES`.

    Raises:
        InputError: The folder is wrong, or see `writer.write`.
    """
    from jaxattn.data.tfds import writer  # imports tensorflow_datasets

    out, skip_bad = flags.FLAGS.out, bool(flags.FLAGS["skip-bad"].value)
    index = SOURCES[dataset](Path(flags.FLAGS.source))
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
