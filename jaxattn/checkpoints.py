"""Checkpoints of a run: the latest, the one before, and the best by a validation metric.

Orbax writes the arrays of step N into ``N/state``. ``N/manifest.json`` is written last: the
checksum of each file, what the run has to know besides, and its own checksum. A folder gets the
name ``N`` only then, and loses it before anything in it is deleted, so an interrupted save or
deletion leaves no half checkpoint. Checkpoints of older versions have ``N/notes`` and no checksums.

Orbax's preservation policies (``LatestN``, ``BestN``) belong to its ``CheckpointManager``, which
names and deletes a step's folder itself and knows no checksums, so `Checkpoints` chooses what to
keep.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from jaxattn import files
from jaxattn.errors import InputError, invalid
from jaxattn.state import TrainState, Variables

MANIFEST = "manifest.json"
STATE = "state"
DAMAGED = ".damaged"
_OLD_NOTES = "notes/metadata"
_ORBAX_PART = ".orbax-checkpoint-tmp"


class Checkpoints:
    """The checkpoints in a folder; a context manager that waits for pending writes.

    Attributes:
        best: Step of the best checkpoint, None if there is none.
    """

    def __init__(self, folder: Path):
        """Reads which checkpoints there are, and changes nothing."""
        self.folder = folder
        self.best: int | None = None
        self._opened = ExitStack()
        self._path = self._opened.enter_context(files.plain(folder))
        self._steps = sorted(
            int(path.name) for path in folder.glob("*") if path.name.isdecimal() and path.is_dir()
        )
        self._passing: set[int] = set()
        self._saver: ocp.AsyncCheckpointer | None = None
        self._thread = self._opened.enter_context(ThreadPoolExecutor(1))
        self._pending: Future[None] | None = None
        for step in self._steps:
            with suppress(InputError):  # said when it is used
                notes = self._read(step)
                self.best = notes["best"]
                if notes.get("passing"):
                    self._passing.add(step)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
            if jax.process_count() > 1 and self._saver is not None and error[0] is None:
                multihost_utils.sync_global_devices("checkpoints closed")
        finally:
            if self._saver is not None:
                self._saver.close()
            self._opened.close()

    @property
    def latest(self) -> int | None:
        """Step of the latest checkpoint, None if there is none."""
        return self._steps[-1] if self._steps else None

    def clean(self) -> None:
        """Completes what an interrupted process began to delete, and drops what it half saved."""
        if jax.process_index() == 0:
            files.clean(self.folder)
            for step in self._steps:
                files.clean(self.folder / str(step))
            for path in self.folder.glob(f"*{_ORBAX_PART}*"):  # of older versions
                files.delete(path)

    def save(
        self, state: TrainState, progress: dict[str, Any], *, best: bool, passing: bool = False
    ) -> None:
        """Saves a state in the background.

        Args:
            state: The state.
            progress: JSON-able state of the run besides.
            best: Whether this is the best checkpoint so far.
            passing: Whether the next one replaces it: a stopped run's, between those of its plan.

        Raises:
            InputError: The checkpoint before cannot be written.
        """
        step = int(state.step)
        if step == self.latest:
            self.note(progress, best=best)
            return
        self.wait()
        self.best = step if best else self.best
        part = self.folder / f"{step}{files.PART}"
        try:
            if jax.process_index() == 0:
                part.mkdir(parents=True, exist_ok=True)
            if self._saver is None:
                logging.get_absl_logger().addFilter(_is_news)
                self._saver = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
            target = self._path / part.name / STATE
            self._saver.save(target, args=ocp.args.StandardSave(_stored(state)), force=True)
        except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            raise files.unwritable(self.folder / str(step), error) from error
        notes = {"best": self.best, "progress": progress, "passing": passing}
        if passing:
            self._passing.add(step)
        self._steps.append(step)
        self._pending = self._thread.submit(self._complete, step, notes, self._doomed())

    def note(self, progress: dict[str, Any], *, best: bool) -> None:
        """Replaces what the latest checkpoint says besides its state; see `save`."""
        self.wait()
        step = self._steps[-1]
        self.best = step if best else self.best
        if jax.process_index() == 0:
            path = self.folder / str(step)
            notes = {"best": self.best, "progress": progress, "passing": step in self._passing}
            _write_manifest(path, notes, self._read(step).get("files") or files.checksums(path))
            self._delete(self._doomed())

    def flush(self) -> None:
        """Waits until the last save is on the disk, from any thread."""
        if self._pending is not None:
            self._pending.result()

    def wait(self) -> None:
        """Waits until the last save is on the disk.

        Raises:
            InputError: It cannot be written; the checkpoints before are whole.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        step = self._steps[-1]
        try:
            pending.result()
        except (OSError, ValueError, RuntimeError) as error:
            self._steps.pop()
            files.clean(self.folder)
            raise files.unwritable(self.folder / str(step), error) from error
        if jax.process_count() > 1:  # only the first process knows when its manifest is written
            multihost_utils.sync_global_devices(f"checkpoint {step}")

    def _complete(self, step: int, notes: Mapping[str, Any], doomed: Sequence[int]) -> None:
        """Waits for the arrays, then makes a folder of them a checkpoint."""
        assert self._saver is not None
        self._saver.wait_until_finished()
        if jax.process_index() == 0:
            part = self.folder / f"{step}{files.PART}"
            _write_manifest(part, notes, files.checksums(part))
            part.rename(self.folder / str(step))
            files.sync(self.folder)
            self._delete(doomed)

    def _doomed(self) -> list[int]:
        """Steps to delete: all but the latest, the one before it in the run's plan, the best."""
        before = [step for step in self._steps[:-1] if step not in self._passing]
        kept = {self.latest, *before[-1:], self.best}
        doomed = [step for step in self._steps if step not in kept]
        self._steps = [step for step in self._steps if step in kept]
        return doomed

    def _delete(self, steps: Sequence[int]) -> None:
        for path in self.folder.glob(f"*{DAMAGED}"):
            files.delete(path)
        for step in steps:
            files.delete(self.folder / str(step))

    def restore(self, step: int, like: Any) -> tuple[TrainState, dict[str, Any]]:
        """Restores a checkpoint.

        Args:
            step: Its step.
            like: A state of `jax.ShapeDtypeStruct` with the shardings to restore to.

        Returns:
            The state and the progress saved with it.

        Raises:
            InputError: It is damaged.
        """
        self.check(step)
        handler = ocp.StandardCheckpointHandler()
        try:
            path = self._path / str(step) / STATE
            restored = handler.restore(path, args=ocp.args.StandardRestore(_stored(like)))
        except Exception as error:  # whatever Orbax and TensorStore make of a damaged file
            raise _damaged(self.folder / str(step), error) from error
        finally:
            handler.close()
        state = dict(restored)
        progress = self._read(step)["progress"]
        return TrainState(ema=state.pop("average"), **state), progress

    def restore_latest(self, like: Any) -> tuple[TrainState, dict[str, Any]] | None:
        """Restores the latest checkpoint that is whole, and says which are not.

        Damaged ones are renamed, and deleted after the next save.

        Returns:
            See `restore`; None if there never was a checkpoint.

        Raises:
            InputError: All are damaged.
        """
        damaged: list[str] = []
        while self._steps:
            step = self._steps[-1]
            try:
                restored = self.restore(step, like)
            except InputError as error:
                damaged.append(str(error))
                self._steps.pop()
                if not self._steps:
                    break
                if jax.process_index() == 0:
                    print(f"{error}; the checkpoint before is used", file=sys.stderr, flush=True)
                    path = self.folder / str(step)
                    path.rename(path.with_name(path.name + DAMAGED))
                continue
            self.best = self._read(step)["best"]
            if self.best is not None and self.best not in self._steps:
                print(f"{self.folder / str(self.best)}, the best checkpoint, is lost", flush=True)
                self.best = None
            return restored
        if damaged:
            raise InputError(f"{damaged[-1]}; there is no other checkpoint to go on from")
        return None

    def check(self, step: int) -> None:
        """Raises InputError if a checkpoint is damaged: compares each file with its checksum."""
        path = self.folder / str(step)
        notes = self._read(step)
        wrong = ""
        if jax.process_index() == 0 and "files" in notes:
            wrong = files.damage(path, notes["files"])
        elif jax.process_index() == 0:
            print(f"{path}: of an older version, without checksums", file=sys.stderr, flush=True)
        if jax.process_count() > 1:  # all go on from the same one
            found = multihost_utils.broadcast_one_to_all(np.int32(bool(wrong)))
            wrong = wrong or ("see the first process" if found else "")
        if wrong:
            raise _damaged(path, wrong)

    def _read(self, step: int) -> dict[str, Any]:
        """The notes of a checkpoint: the best step, the run's progress, checksums if it has any."""
        path = self.folder / str(step)
        old = path / _OLD_NOTES
        try:
            if (path / MANIFEST).exists() or not old.exists():
                notes = _read_manifest(path)
            else:
                notes = json.loads(old.read_text())
            if not isinstance(notes["best"], int | None):
                raise TypeError("best is no step")
            return {**notes, "progress": dict(notes["progress"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error

    def choose(self, name: str) -> tuple[int, str]:
        """The step of the checkpoint called ``best`` or ``latest``; best falls back on latest.

        A checkpoint that is damaged or lost is replaced by the latest that is whole.

        Returns:
            The step, and what was wrong with the one asked for, '' if nothing.

        Raises:
            InputError: There is no whole checkpoint.
        """
        if not self._steps:
            raise invalid(str(self.folder), "the checkpoints of a run", "none")
        wanted = (self.best if name == "best" else None) or self._steps[-1]
        wrong: list[str] = []
        for step in [wanted, *(s for s in reversed(self._steps) if s != wanted)]:
            try:
                self.check(step)
            except InputError as error:
                wrong.append(str(error))
                continue
            return step, f"{wrong[0]}; step {step} is used instead" if wrong else ""
        raise InputError(f"{wrong[0]}; there is no other checkpoint")


def read_variables(folder: Path, name: str = "best") -> tuple[Variables, int]:
    """The variables of a run to evaluate or start from, without its optimizer state.

    Says so, on stderr, if another checkpoint takes the place of a damaged one.

    Args:
        folder: The run's checkpoints.
        name: ``best``, by validation, or ``latest``.

    Returns:
        Params and batch_stats (the EMA's, if there is one) as NumPy arrays, and the step.

    Raises:
        InputError: There is no checkpoint, or all are damaged.
    """
    with Checkpoints(folder) as saved:
        step, wrong = saved.choose(name)
    if wrong:
        print(wrong, file=sys.stderr, flush=True)
    state = read_arrays(folder / str(step) / STATE, ("params", "batch_stats", "average"))
    average = state.get("average")
    return average or {"batch_stats": {}, **state}, step


def read_arrays(path: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """An Orbax checkpoint as NumPy arrays, whatever devices wrote it.

    Args:
        path: The checkpoint.
        keys: Which top-level entries to read; all by default.

    Raises:
        InputError: It is damaged.
    """
    handler = ocp.PyTreeCheckpointHandler()
    try:
        with files.plain(path) as place:
            tree = handler.metadata(place).tree
            item = {key: tree[key] for key in keys or tree if tree.get(key) is not None}
            args = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), item)
            restore = ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
            return handler.restore(place, args=restore)
    except Exception as error:  # whatever Orbax and TensorStore make of a damaged file
        raise _damaged(path, error) from error
    finally:
        handler.close()


def _is_news(record: Any) -> bool:
    """Whether a line of the log is not Orbax's traceback of an error that it raises as well."""
    return "async_checkpointer" not in record.pathname


def _damaged(path: Path, reason: object) -> InputError:
    if isinstance(reason, FileNotFoundError):
        reason = f"{Path(str(reason.filename)).name} is missing"
    reason = " ".join(str(reason).split())[:200]
    return invalid(str(path), "an Orbax checkpoint", f"a damaged one ({reason})")


def _write_manifest(path: Path, notes: Mapping[str, Any], sums: Mapping[str, str]) -> None:
    content = json.loads(json.dumps({**notes, "files": dict(sums)}, default=float))
    files.write_text(path / MANIFEST, _sealed(content))


def _read_manifest(path: Path) -> dict[str, Any]:
    """Reads and checks a manifest; raises OSError or ValueError."""
    text = (path / MANIFEST).read_text(encoding="utf-8")
    content = json.loads(text)
    if not isinstance(content, dict) or not content.pop("sha256", "") or text != _sealed(content):
        raise ValueError(f"{MANIFEST} has changed")
    return content


def _sealed(content: Mapping[str, Any]) -> str:
    """The text of a manifest, with a checksum of itself."""
    text = json.dumps(content)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({**content, "sha256": checksum}, indent=2) + "\n"


def _stored(state: TrainState) -> dict[str, Any]:
    """A state by the names that checkpoints have always had."""
    return {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
        "average": state.ema,
    }
