"""Classifies images: ``python -m jaxattn.predict --run=runs/ham_irv2 PATHS...``.

PATHS are files, folders and glob patterns, see `jaxattn.data.image_files.find`. Each image gets a
row, on standard output or in ``--out``; one that cannot be read gets a row that says why. The exit
status is 0, 2 if nothing could be done at all, and 3 if some images could not be read.
"""

import collections
import contextlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from absl import flags
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from jaxattn import cli, files, overlays, run_dir, runtime
from jaxattn.data import image_files, metadata
from jaxattn.data.metadata import Record
from jaxattn.errors import invalid
from jaxattn.run import Prediction, Run, adjusted, check_ensemble, load_run, stream
from jaxattn.submissions import FORMATS, Format, Row

#: The command takes arguments that are no flags.
POSITIONAL = True

#: Exit status if some images could not be read.
UNREADABLE = 3


def rows(runs: Sequence[Run], predictions: Iterable[Prediction]) -> Iterator[Row]:
    """What is written of each prediction of a file."""
    names = runs[0].class_names
    for each in predictions:
        path = Path(str(each.source))
        if each.error:
            yield Row(path.stem, str(path), error=each.error)
            continue
        scores = adjusted(runs, each.probabilities[None])[0]
        prediction = names[scores.argmax()]
        yield Row(path.stem, str(path), each.probabilities, scores / scores.sum(), prediction)


def run_folders(given: Sequence[str]) -> list[Path]:
    """The folders of runs; a folder of runs, such as a cross-validation's, stands for all of them.

    Raises:
        InputError: There is no run.
    """
    found = []
    for each in given:
        folder = Path(each).expanduser()
        inside = sorted(path.parent for path in folder.glob(f"*/{run_dir.CONFIG}"))
        found += inside if inside and not (folder / run_dir.CONFIG).exists() else [folder]
    return found


class OverlayWriter:
    """Writes the maps of images over what the model saw, as PNG files."""

    def __init__(self, folder: Path, runs: Sequence[Run]):
        self._folders = [folder] if len(runs) == 1 else [folder / str(i) for i in range(len(runs))]
        self._runs = runs
        self._used: collections.Counter[str] = collections.Counter()
        for each in self._folders:
            each.mkdir(parents=True, exist_ok=True)

    def write(self, prediction: Prediction) -> None:
        """Writes ``IMAGE_ID.MAP.png`` for each map; a second image of that id gets a number."""
        if prediction.error:
            return
        name = Path(str(prediction.source)).stem
        self._used[name] += 1
        name += f"-{self._used[name]}" if self._used[name] > 1 else ""
        for folder, run, maps, pixels in zip(
            self._folders, self._runs, prediction.maps, prediction.pixels, strict=True
        ):
            for kind, values in maps.items():
                drawn = overlays.overlay(run.seen(pixels), values, **run.config.evaluation.overlay)
                Image.fromarray(drawn).save(folder / f"{name}.{kind}.png")


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.1f} images/s")


def write(
    put: Callable[[str], object],
    runs: Sequence[Run],
    paths: Sequence[Path],
    form: Format,
    drawn: OverlayWriter | None = None,
    batch_size: int = 0,
    records: Sequence[Record] | None = None,
) -> int:
    """Classifies files and writes their rows, with a progress bar on standard error.

    Args:
        put: Takes the text.
        runs: One run, or an ensemble.
        paths: The files.
        form: How to write.
        drawn: Where to draw maps; None for nowhere.
        batch_size: See `run.stream`.
        records: The metadata of each file; None for none.

    Returns:
        How many could not be read; each is named on standard error too if the format cannot.
    """

    def drawing(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        for each in predictions:
            if drawn:
                drawn.write(each)
            yield each

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
    unreadable = 0
    put(form.header)
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        predictions = stream(
            runs, paths, metadata=records, batch_size=batch_size, maps=drawn is not None
        )
        shown = progress.track(predictions, len(paths), description="predicting")
        for row in rows(runs, drawing(shown)):
            unreadable += bool(row.error)
            text = form.line(row)
            put(text)
            if row.error and not text:
                progress.console.print(row.error, markup=False, highlight=False, soft_wrap=True)
    return unreadable


@contextlib.contextmanager
def _opened(out: str) -> Iterator[Callable[[str], object]]:
    """Takes text for a file that appears when it is complete; for standard output without one."""
    if not out:
        yield sys.stdout.write
        return
    path = Path(out).expanduser()
    if path.is_dir():
        raise invalid("--out", "a file", f"the folder {path}")
    # A name may hold bytes that are not UTF-8.
    with (
        files.replacing(path) as part,
        part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file.write


def find_records(
    runs: Sequence[Run], paths: Sequence[Path], table: str
) -> tuple[list[Record] | None, list[str]]:
    """The metadata of files, for runs that see metadata.

    Args:
        runs: The runs.
        paths: The files.
        table: A table, see `metadata.read`; '' for none.

    Returns:
        The record of each file, and lines on what counts as missing; None without a table.

    Raises:
        InputError: The table is wrong, or no run sees metadata.
    """
    seeing = [run.vocabulary for run in runs if run.vocabulary]
    if not table:
        return None, ["no --metadata: all values count as missing"] if seeing else []
    if not seeing:
        given = f"{runs[0].folder}, which sees images alone"
        raise invalid("--metadata", "a run that sees them (metadata.fields)", given)
    known = metadata.read(Path(table).expanduser())
    found = [known.get(path.stem, {}) for path in paths]
    lines = [f"{sum(path.stem in known for path in paths)} of {len(paths)} images are in {table}"]
    for vocabulary in seeing:
        lines += metadata.describe(vocabulary.unknown(metadata.as_table(found)))
    return found, list(dict.fromkeys(lines))


def check_unique(paths: Sequence[Path]) -> None:
    """Raises InputError if two files have one image_id, which a challenge refuses."""
    first: dict[str, Path] = {}
    for path in paths:
        other = first.setdefault(path.stem, path)
        if other is not path:
            raise invalid("PATHS", "one file for each image id", f"{other} and {path}")


def define_flags() -> None:
    """Defines the flags of the command line."""
    flags.DEFINE_multi_string(
        "run",
        None,
        "Folder of a run, or of several runs; given repeatedly: an ensemble, the mean of their "
        "probabilities.",
        required=True,
    )
    flags.DEFINE_enum("checkpoint", "best", ("best", "latest"), "The checkpoint of each run.")
    flags.DEFINE_string("out", "", "File to write; by default standard output.")
    flags.DEFINE_string("format", "csv", f"How to write: {', '.join(FORMATS)}.")
    flags.DEFINE_string("overlays", "", "Folder for images with attention and Grad-CAM; '': none.")
    flags.DEFINE_integer("tta", 0, "Test-time augmentation, 1 or 8; 0: the run's own.")
    flags.DEFINE_bool("calibrated", False, "Scale by the temperature fitted in evaluation.")
    flags.DEFINE_integer("batch_size", 0, "Images at once; 0: the run's own.", lower_bound=0)
    flags.DEFINE_string(
        "metadata", "", "Table with image_id, age, sex, localization, for a run that sees them."
    )
    cli.define_plugin_flag()


def main(argv: list[str]) -> int:
    """The command line."""
    given = flags.FLAGS
    warnings.filterwarnings("ignore", module="PIL")  # of odd files that it reads all the same
    make_format = FORMATS[given.format]
    paths, skipped = image_files.find(argv[1:])
    if not paths:
        raise invalid("PATHS", "images", f"none ({skipped} other files)" if skipped else "none")
    folders = run_folders(given.run)
    runtime.setup(run_dir.read_config(folders[0]).cpu_devices)
    explain = bool(given.overlays)
    options = {"tta": given.tta, "explain": explain, "calibrated": given.calibrated}
    runs = [load_run(each, given.checkpoint, **options) for each in folders]
    check_ensemble(runs)
    form = make_format(runs[0].class_names)
    if form.unique:
        check_unique(paths)
    records, lines = find_records(runs, paths, given.metadata)
    print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)
    drawn = OverlayWriter(Path(given.overlays).expanduser(), runs) if explain else None
    with _opened(given.out) as put:
        unreadable = write(put, runs, paths, form, drawn, given.batch_size, records)
    text = f"{len(paths)} images: {len(paths) - unreadable} classified"
    text += f", {unreadable} could not be read" if unreadable else ""
    text += f"; {skipped} other files skipped" if skipped else ""
    print(text, file=sys.stderr)
    return UNREADABLE if unreadable else 0


if __name__ == "__main__":
    define_flags()
    cli.run_main(main, positional=POSITIONAL)
