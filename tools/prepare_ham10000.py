"""Makes a data set of HAM10000's public files, in any of the layouts they are handed out in.

    python tools/prepare_ham10000.py --source=DIR --out=DIR [--size=N] [--skip-bad] [--overwrite]

DIR is a folder with the Kaggle, the Harvard Dataverse or the ISIC 2018 Task 3 files, unpacked; what
each looks like is in `jaxattn.data.ham10000`. Reads every image to its end, writes ArrayRecord
files that TFDS and `jaxattn.data.prepared.load` read, and says what it found, also in
OUT/report.json.
"""

from pathlib import Path

from absl import flags, logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxattn.data import ham10000, writer
from jaxattn.errors import run_main

_SOURCE = flags.DEFINE_string("source", None, "Folder with the public files.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write the data set to.", required=True)
_SIZE = flags.DEFINE_integer(
    "size", None, "Shrink the shorter side to this many pixels; default: keep the original bytes."
)
_SKIP_BAD = flags.DEFINE_bool(
    "skip-bad", False, "Leave out images that are missing, unlabelled or broken; list them."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a data set that OUT holds.")


def main(argv: list[str]) -> None:
    """Reads the folder, writes the data set, prints the report."""
    del argv
    logging.set_verbosity(logging.WARNING)  # TFDS logs each folder that it opens
    inventory = ham10000.read(Path(_SOURCE.value))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        report = writer.prepare(
            inventory,
            Path(_OUT.value),
            size=_SIZE.value,
            skip_bad=_SKIP_BAD.value,
            overwrite=_OVERWRITE.value,
            track=lambda items, what, total: progress.track(items, total, description=what),
        )
    _print(report)


def _print(report: dict) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table("class", "images", title=f"{report['name']} ({report['layout']} layout)")
    for name, count in report["classes"].items():
        table.add_row(name, str(count))
    table.add_section()
    for name in ("images", "lesions", "masks"):
        table.add_row(name, str(report[name]))
    console.print(table)
    for heading in ("problems", "notes"):
        for kind, found in report[heading].items():
            skipped = "skipped" if heading == "problems" else "noted"
            names = ", ".join(list(found)[:3]) + (", ..." if len(found) > 3 else "")
            console.print(f"{skipped}: {len(found)} {kind.replace('_', ' ')}: {names}")
    console.print(f"written to {_OUT.value}; {_OUT.value}/{writer.REPORT} names everything")


if __name__ == "__main__":
    run_main(main)
