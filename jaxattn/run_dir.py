"""The folder a run leaves: what it was run with, what it logged, what came out."""

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from jaxattn import config as configs
from jaxattn.data import splits
from jaxattn.data.dataset import Dataset
from jaxattn.errors import InputError

CONFIG = "config.json"
SPLIT = "split.csv"
LOG = "log.jsonl"
CHECKPOINTS = "checkpoints"
ORIGIN = "origin.json"  # where the initial weights come from


def open_folder(folder: Path, config: ConfigDict) -> None:
    """Makes a run's folder, or checks that the run in it is this one.

    Raises:
        InputError: The folder holds a run with another config, or something else.
    """
    path = folder / CONFIG
    given = json.loads(config.to_json())
    if path.exists():
        changed = configs.differences(read_config(folder).to_dict(), given)
        if changed:
            raise InputError(
                f"{folder} holds a run with another config ({'; '.join(changed)}); "
                "the same config, or another --workdir wanted"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} holds other files than a run; a new --workdir wanted")
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, given)


def read_config(folder: Path) -> ConfigDict:
    """The config of a run; fields that there were not in its time have their defaults.

    Raises:
        InputError: There is no run in the folder, or its config cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder}: no {CONFIG} there, the folder of a run wanted")
    try:
        return ConfigDict(configs.completed(json.loads(path.read_text())))
    except ValueError as error:
        raise InputError(f"{path}: {error}; the JSON that training wrote wanted") from error


def record_split(folder: Path, split: Mapping[str, Any], dataset: Dataset, leak: str = "") -> None:
    """Writes the run's split, or checks that a resumed run has the same one.

    Args:
        folder: The run's folder.
        split: The split.
        dataset: What it splits.
        leak: ``config.split.leak``, which the file names.

    Raises:
        InputError: The recorded split is another one.
    """
    path = folder / SPLIT
    if not path.exists():
        if jax.process_index() == 0:
            splits.write(path, split, dataset, leak)
        return
    recorded = splits.read(path, dataset, leak)
    for name in splits.PARTS:
        if list(recorded[name]) != list(split[name]):
            raise InputError(
                f"{path}: its {name} part is not the one that {dataset.name} gives now; the data "
                "set that the run was started with, or another --workdir wanted"
            )


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2, default=float) + "\n")
    part.replace(path)


def versions() -> dict[str, str]:
    """Versions of what computes."""
    packages = ("jaxattn", "jax", "jaxlib", "flax", "optax", "numpy")
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in packages}


def device() -> str:
    """The devices, in words."""
    first = jax.devices()[0]
    return f"{jax.device_count()} x {first.device_kind} ({first.platform})"


class Log:
    """A run's metrics: a line of JSON and TensorBoard scalars for each entry.

    Entries of steps that a resumed run will take again are dropped, so that every step stands in
    the log once.
    """

    def __init__(self, folder: Path, first_step: int):
        """Opens the log of a run whose next step is ``first_step``."""
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        path = folder / LOG
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= first_step]
        path.write_text("".join(kept))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, kind: str, step: int, **values: float) -> None:
        """Adds an entry of a kind: train or validation."""
        if not self._writes:
            return
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Writes out what is pending."""
        if self._writes:
            self._file.close()
            self._board.close()


def _lines(path: Path) -> list[str]:
    """The whole lines of a log; a last one that a kill cut off is dropped."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
