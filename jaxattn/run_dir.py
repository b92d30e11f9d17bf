"""The folder of a run: its config, split, log and results."""

import contextlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxattn import config as configs
from jaxattn import files, reading
from jaxattn.data import fingerprint, splits
from jaxattn.data.dataset import Dataset
from jaxattn.data.metadata import Vocabulary
from jaxattn.errors import InputError, invalid
from jaxattn.files import write_json as write_json  # of the files below
from jaxattn.runtime import lock

CONFIG = "config.json"
SPLIT = "split.csv"
#: The trace of `profile` steps.
PROFILE = "profile"
LOG = "log.jsonl"
CHECKPOINTS = "checkpoints"
ORIGIN = "origin.json"  # where the initial weights come from
# Names, training images of each, how images were prepared, fingerprint, vocabulary of metadata.
CLASSES = "classes.json"


@contextlib.contextmanager
def opened(folder: Path, config: ConfigDict) -> Iterator[None]:
    """Creates a run's folder, or checks that the run in it is this one, and holds it.

    What an interrupted start left behind is replaced.

    Raises:
        InputError: The folder holds a run with another config, or something else, cannot be
            written, or another process is in it.
    """
    if jax.process_index() != 0:  # the first process decides; another file system is its own fault
        yield
        return
    _check_folder(folder, config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.unwritable(folder, error) from error
    with lock.hold(folder):
        _check_folder(folder, config)
        files.clean(folder)
        write_json(folder / CONFIG, json.loads(config.to_json()))
        yield


def _check_folder(folder: Path, config: ConfigDict) -> None:
    """Raises InputError unless a run of this config can be, or go on, in a folder."""
    if (folder / CONFIG).exists():
        try:
            recorded = read_config(folder)
        except InputError:
            if has_checkpoint(folder):
                raise
            return  # of an interrupted start
        changed = configs.differences(recorded.to_dict(), json.loads(config.to_json()))
        if changed:
            raise invalid(
                str(folder),
                "the config that the run was started with, or another --workdir",
                f"another config ({'; '.join(changed)})",
            )
    elif folder.exists():
        if not folder.is_dir():
            raise invalid("--workdir", "a folder", f"{folder}, which is a file")
        others = [
            path.name
            for path in folder.iterdir()
            if path.name != lock.NAME and not path.name.endswith(files.PART)
        ]
        if others:
            given = f"{folder} with other files"
            raise invalid("--workdir", "a new folder or that of a run", given)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has a checkpoint; without one it starts anew."""
    return any(path.name.isdecimal() for path in (folder / CHECKPOINTS).glob("*"))


def read_config(folder: Path) -> ConfigDict:
    """The config of a run, whichever version of the package wrote it.

    Raises:
        InputError: There is no run in the folder, or its config cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise invalid(str(folder), f"the folder of a run, with {CONFIG}", "none")
    with reading.reading(path, "the JSON that training wrote"):
        return configs.resolved(configs.read(path.read_text(encoding="utf-8")))


def record_split(
    folder: Path,
    split: Mapping[str, np.ndarray],
    dataset: Dataset,
    leak: str = "",
    writes: bool = True,
    vocabulary: Vocabulary | None = None,
) -> None:
    """Writes the run's split and classes, or checks that a resumed run has the same split.

    Args:
        folder: The run's folder.
        split: Rows of each part.
        dataset: What it splits.
        leak: ``config.split.leak``, recorded in the file.
        writes: Whether to write what is missing.
        vocabulary: Of the metadata that the model sees, if any.

    Raises:
        InputError: The recorded split differs, or the data set has other pixels, labels or
            metadata.
    """
    path = folder / SPLIT
    begun = has_checkpoint(folder)  # if not, what is there is of an interrupted start
    fields = tuple(vocabulary.columns) if vocabulary else ()
    seen = {**dataset.fingerprint, **fingerprint.of_fields(fields, dataset.table)}
    if begun:
        check_data(folder, dataset, seen)
    if begun and path.exists():
        recorded = splits.read(path, dataset, leak)
        for name in splits.PARTS:
            if list(recorded[name]) != list(split[name]):
                raise invalid(
                    f"{path}, {name} part",
                    "the images that the run was started with, or another --workdir",
                    f"other images from {dataset.name}",
                )
    if writes and jax.process_index() == 0:
        if not begun or not path.exists():
            splits.write(path, split, dataset, leak)
        if not begun or not (folder / CLASSES).exists():
            counts = np.bincount(dataset.labels[split["train"]], minlength=len(dataset.class_names))
            classes = dict(zip(dataset.class_names, counts.tolist(), strict=True))
            facts: dict[str, Any] = {
                "dataset": dataset.name,
                "prepared_size": dataset.prepared_size,
            }
            facts |= {"fingerprint": seen, "training_images": classes}
            facts |= {"metadata": vocabulary.to_json()} if vocabulary else {}
            write_json(folder / CLASSES, facts)


def check_data(folder: Path, dataset: Dataset, seen: Mapping[str, str] | None = None) -> None:
    """Raises InputError if a run was trained on other data than a data set under these ids.

    Args:
        folder: The run's folder.
        dataset: The data set.
        seen: Its checksums, if they are more than its own.
    """
    path = folder / CLASSES
    if path.is_file():
        with reading.reading(path, "the JSON that training wrote"):
            recorded = dict(json.loads(path.read_text()).get("fingerprint", {}))
        fingerprint.check(str(path), recorded, seen or dataset.fingerprint, dataset.name)


def read_classes(folder: Path) -> dict[str, Any]:
    """What a run was trained on.

    Returns:
        ``dataset``, its name; ``training_images``, their number by class, in the model's order;
        ``prepared_size``, see `Dataset`: None if an older version wrote the file.

    Raises:
        InputError: The run does not record them: older versions did not, until evaluated again.
    """
    path = folder / CLASSES
    if not path.is_file():
        raise invalid(
            str(path), "the class names (python -m jaxattn.evaluate writes them)", "no such file"
        )
    found = reading.read_json(path, "the class names that training wrote")
    found["dataset"].text()
    counts = found["training_images"].entries()
    if not counts:
        raise invalid(str(path), "the images of each class", "no class")
    for count in counts.values():
        count.whole()
    return {"prepared_size": None, **found.object()}


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of the metadata that a run's model sees, None if it sees images alone.

    Raises:
        InputError: It is damaged.
    """
    found = reading.read_json(folder / CLASSES, "the class names that training wrote")
    return Vocabulary.from_json(found["metadata"]) if "metadata" in found else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute."""
    packages = ("jaxattn", "jax", "jaxlib", "flax", "optax", "numpy")
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in packages}


def commit() -> str:
    """The git commit of the package's checkout, ``-changed`` where files differ; '' outside one."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():
        return ""
    command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40"]
    try:
        found = subprocess.run(
            [*command, "--exclude=*", "--dirty=-changed"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def device() -> str:
    """Count, kind and platform of the devices."""
    first = jax.devices()[0]
    return f"{jax.device_count()} x {first.device_kind} ({first.platform})"


class Log:
    """A run's metrics: one line of JSON and TensorBoard scalars per entry.

    Lines are only ever added. Opening the log cuts off the entries of steps that a resumed run
    takes again, which are the last ones, so that each step is logged once.
    """

    def __init__(self, folder: Path, first_step: int, validated: bool = True):
        """Opens the log of a run.

        Args:
            folder: The run's folder.
            first_step: Its next step.
            validated: Whether the validation after the step before was finished.
        """
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        from tensorboardX import SummaryWriter  # it imports slowly

        path = folder / LOG
        keeps = _prefix(path, first_step, validated)
        try:
            self._file = path.open("a", buffering=1, encoding="utf-8")
            os.truncate(path, keeps)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        except OSError as error:
            raise files.unwritable(path, error) from error

    def write(self, kind: str, step: int, **values: float) -> None:
        """Adds an entry; its kind is train or validation.

        Numbers that are not finite are null, and left out of TensorBoard's.
        """
        if not self._writes:
            return
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **known}) + "\n")
        for name, value in known.items():
            if value is not None:
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def flush(self) -> None:
        """Writes what is held back, from any thread and also after `close`."""
        if self._writes and not self._file.closed:
            self._file.flush()
            self._board.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._writes:
            self._file.close()
            self._board.close()


def _prefix(path: Path, last_step: int, validated: bool) -> int:
    """Bytes at the start of a log to keep: up to its last whole entry that is not taken again."""
    *lines, torn = (path.read_bytes() if path.exists() else b"").split(b"\n")
    keeps, end, damaged = 0, 0, int(bool(torn))
    for line in lines:
        end += len(line) + 1
        try:
            entry = json.loads(line)
            again = entry["step"] == last_step and entry["kind"] == "validation" and not validated
            if again or entry["step"] > last_step:
                break
            keeps = end
        except (ValueError, KeyError, TypeError):
            damaged += 1
    if damaged:
        print(f"{path}: {damaged} damaged lines are left out", file=sys.stderr, flush=True)
    return keeps
