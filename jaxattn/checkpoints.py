"""Checkpoints of a run, through Orbax: the latest, and the best by a validation metric."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxattn.errors import invalid
from jaxattn.state import TrainState, Variables


class Checkpoints:
    """The checkpoints in a folder; a context manager that waits for pending writes.

    Attributes:
        best: Step of the best checkpoint, None if there is none.
    """

    def __init__(self, folder: Path):
        """Opens the folder, creating it if needed."""
        self.best: int | None = None
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=ocp.CheckpointManagerOptions(preservation_policy=self)
        )
        if self.latest is not None:
            self.best = self._notes(self.latest)["best"]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self._manager.close()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's preservation policy: keep the latest and the best.

        Not Orbax's ``BestN``: the run itself decides what is best (ties keep the earlier one), and
        checkpoints within an epoch carry no metric.
        """
        del context
        latest = max(checkpoint.step for checkpoint in checkpoints)
        return [checkpoint.step in (latest, self.best) for checkpoint in checkpoints]

    @property
    def latest(self) -> int | None:
        """Step of the latest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: dict[str, Any], *, best: bool) -> None:
        """Saves a state in the background.

        Args:
            state: The state.
            progress: JSON-able state of the run besides.
            best: Whether this is the best checkpoint so far.
        """
        step = int(state.step)
        if step == self.latest:
            return
        self.best = step if best else self.best
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_stored(state)),
                notes=ocp.args.JsonSave({"best": self.best, "progress": progress}),
            ),
        )

    def restore(self, step: int, like: Any) -> tuple[TrainState, dict[str, Any]]:
        """Restores a checkpoint.

        Args:
            step: Its step.
            like: A state of `jax.ShapeDtypeStruct` with the shardings to restore to.

        Returns:
            The state and the progress saved with it.
        """
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_stored(like)))
        )
        state = dict(restored["state"])
        return TrainState(ema=state.pop("average"), **state), self._notes(step)["progress"]

    def _notes(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(notes=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["notes"]

    def choose(self, name: str) -> int:
        """The step of the checkpoint called ``best`` or ``latest``; best falls back on latest.

        Raises:
            InputError: There is no checkpoint.
        """
        step = (self.best if name == "best" else None) or self.latest
        if step is None:
            raise invalid(str(self._manager.directory), "the checkpoints of a run", "none")
        return step


def read_variables(folder: Path, name: str = "best") -> tuple[Variables, int]:
    """The variables of a run to evaluate or start from, without its optimizer state.

    Args:
        folder: The run's checkpoints.
        name: ``best``, by validation, or ``latest``.

    Returns:
        Params and batch_stats (the EMA's, if there is one) as NumPy arrays, and the step.

    Raises:
        InputError: There is no checkpoint, or it is damaged.
    """
    with Checkpoints(folder) as saved:
        step = saved.choose(name)
    state = read_arrays(folder / str(step) / "state", ("params", "batch_stats", "average"))
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
        tree = handler.metadata(path.absolute()).tree
        item = {key: tree[key] for key in keys or tree if tree.get(key) is not None}
        args = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), item)
        restore = ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
        return handler.restore(path.absolute(), args=restore)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).split("\n")[0]
        raise invalid(str(path), "an Orbax checkpoint", f"a damaged one ({reason})") from error
    finally:
        handler.close()


def _stored(state: TrainState) -> dict[str, Any]:
    """A state by the names that checkpoints have always had."""
    return {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
        "average": state.ema,
    }
