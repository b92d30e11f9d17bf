"""The folder of a run: its config, split, log and results."""

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxattn import config as configs
from jaxattn.data import splits
from jaxattn.data.dataset import Dataset
from jaxattn.errors import invalid

CONFIG = "config.json"
SPLIT = "split.csv"
LOG = "log.jsonl"
CHECKPOINTS = "checkpoints"
ORIGIN = "origin.json"  # where the initial weights come from
CLASSES = "classes.json"  # names, training images of each, and how images were prepared


def open_folder(folder: Path, config: ConfigDict) -> None:
    """Creates a run's folder, or checks that the run in it is this one.

    Raises:
        InputError: The folder holds a run with another config, or something else.
    """
    path = folder / CONFIG
    given = json.loads(config.to_json())
    if path.exists():
        changed = configs.differences(read_config(folder).to_dict(), given)
        if changed:
            raise invalid(
                str(folder),
                "the config that the run was started with, or another --workdir",
                f"another config ({'; '.join(changed)})",
            )
    elif folder.exists() and any(folder.iterdir()):
        raise invalid("--workdir", "a new folder or that of a run", f"{folder} with other files")
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, given)


def read_config(folder: Path) -> ConfigDict:
    """The config of a run, whichever version of the package wrote it.

    Raises:
        InputError: There is no run in the folder, or its config cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise invalid(str(folder), f"the folder of a run, with {CONFIG}", "none")
    try:
        config = configs.read(path.read_text())
    except ValueError as error:
        raise invalid(
            str(path), "the JSON that training wrote", f"a damaged file ({error})"
        ) from error
    return configs.resolved(config)


def record_split(
    folder: Path, split: Mapping[str, np.ndarray], dataset: Dataset, leak: str = ""
) -> None:
    """Writes the run's split and classes, or checks that a resumed run has the same split.

    Args:
        folder: The run's folder.
        split: Rows of each part.
        dataset: What it splits.
        leak: ``config.split.leak``, recorded in the file.

    Raises:
        InputError: The recorded split differs.
    """
    path = folder / SPLIT
    if path.exists():
        recorded = splits.read(path, dataset, leak)
        for name in splits.PARTS:
            if list(recorded[name]) != list(split[name]):
                raise invalid(
                    f"{path}, {name} part",
                    "the images that the run was started with, or another --workdir",
                    f"other images from {dataset.name}",
                )
    if jax.process_index() == 0:
        if not path.exists():
            splits.write(path, split, dataset, leak)
        if not (folder / CLASSES).exists():
            counts = np.bincount(dataset.labels[split["train"]], minlength=len(dataset.class_names))
            classes = dict(zip(dataset.class_names, counts.tolist(), strict=True))
            facts = {"dataset": dataset.name, "prepared_size": dataset.prepared_size}
            write_json(folder / CLASSES, facts | {"training_images": classes})


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
    return {"prepared_size": None, **json.loads(path.read_text())}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2, default=float, allow_nan=False) + "\n")
    part.replace(path)


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

    Opening it drops the entries of steps that a resumed run takes again, so that each step is
    logged once.
    """

    def __init__(self, folder: Path, first_step: int):
        """Opens the log of a run whose next step is ``first_step``."""
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        from tensorboardX import SummaryWriter  # it imports slowly

        path = folder / LOG
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= first_step]
        path.write_text("".join(kept))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, kind: str, step: int, **values: float) -> None:
        """Adds an entry; its kind is train or validation."""
        if not self._writes:
            return
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **known}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._writes:
            self._file.close()
            self._board.close()


def _lines(path: Path) -> list[str]:
    """The complete lines of a log; a torn last line is dropped."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
