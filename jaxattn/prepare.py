"""Prepares a data set for training or evaluation: a public one, or one's own.

    python -m jaxattn.prepare --source=DIR --out=DIR [--dataset=NAME] [--size=N] [--skip-bad]
        [--overwrite] [--plugin=MODULE]
    python -m jaxattn.prepare --verify --out=DIR

NAME is one of `jaxattn.data.sources.SOURCES`: a public data set, ``folder`` for a folder of images
for each class, ``table`` for images and a CSV, or what a plugin registers; without it, what the
files look like. The source is a folder with the public files as they were downloaded, unpacked or
not, or one archive; the modules in `jaxattn.data.sources` say which. Reads every image completely,
writes ArrayRecord files that TFDS and `jaxattn.data.tfds.reader` read, and reports what it found,
also in OUT/report.json.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxattn import cli
from jaxattn.data import sources
from jaxattn.errors import invalid

#: Flags that `jaxattn.data.sources.image_table.read` takes.
_TABLE_FLAGS = {
    "table": "The table of one's own images; default: the only one in the folder.",
    "image-column": "Its column of images.",
    "label-column": "Its column of classes.",
    "group-column": "Its column of lesions or patients, which no split separates.",
    "part-column": "Its column of official parts.",
}


def define_flags(dataset: str = "auto") -> None:
    """Defines the flags of the command line.

    Args:
        dataset: Default of --dataset.
    """
    flags.DEFINE_string("dataset", dataset, "Name of the data set; auto: what the files look like.")
    flags.DEFINE_string("source", None, "Folder or archive with the files.")
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
    flags.DEFINE_bool("verify", False, "Only recheck the data set in OUT.")
    for name, text in _TABLE_FLAGS.items():
        flags.DEFINE_string(name, "", text)
    cli.define_plugin_flag()


def main(argv: list[str]) -> None:
    """Prepares the data set, with a progress bar, and prints the report."""
    del argv
    from jaxattn.data.sources import archives
    from jaxattn.data.tfds import folders, verify, writer  # imports tensorflow_datasets

    given = flags.FLAGS
    out = Path(given.out).expanduser()
    if given.verify:
        with _progress() as track:
            added = verify.verify(out, track)
        print(f"{out}: every record is as it was prepared{'; hashes added' * added}")
        return
    if not given.source:
        raise invalid("--source", "the folder or archive with the files", "nothing")
    source = Path(given.source).expanduser()
    folders.recover(out.resolve(), ("incomplete", "unpacked"))
    options = {name.replace("-", "_"): given[name].value for name in _TABLE_FLAGS}
    with archives.unpacked(source, out) as folder:
        index = sources.read(given.dataset, folder, {k: v for k, v in options.items() if v})
        index.name = re.sub(r"\W+", "_", _name(index, source)) or "images"
        with _progress() as track:
            report = writer.write(
                index,
                out,
                size=given.size,
                skip_bad=bool(given["skip-bad"].value),
                overwrite=given.overwrite,
                track=track,
            )
    _print(report)
    print(f"written to {out}; {out}/{writer.REPORT} lists everything")


def _name(index: Any, source: Path) -> str:
    """The name of a data set that was unpacked: its own, or that of its archive."""
    return source.name.partition(".")[0] if index.name.startswith((".", "_")) else index.name


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Iterable[Any], str, int], Iterable[Any]]]:
    """A progress bar, as the function that shows it while items are taken."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        yield lambda items, what, total: progress.track(items, total, description=what)


def _print(report: dict) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table("class", "images", title=f"{report['name']} ({report['layout']} layout)")
    for name, count in report["classes"].items():
        table.add_row(name, str(count))
    table.add_section()
    for name, count in report.get("parts", {}).items():
        table.add_row(f"{name} part" if name else "no part", str(count))
    for name in ("images", "lesions", "masks", "attributes"):
        if name in report:
            table.add_row(name, str(report[name]))
    console.print(table)
    for heading, verb in (("problems", "skipped"), ("notes", "noted")):
        for kind, found in report[heading].items():
            first = list(found)[:3]
            if kind in _SAID:
                first = [f"{name} ({found[name]})" for name in first]
            names = ", ".join(first) + (", ..." if len(found) > 3 else "")
            console.print(f"{verb}: {len(found)} {kind.replace('_', ' ')}: {names}", markup=False)


#: Notes that say little without their text.
_SAID = (
    "lesion_with_several_diagnoses",
    "same_pixels",
    "same_pixels_other_diagnosis",
    "near_duplicate",
    "unused_folder",
)


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
