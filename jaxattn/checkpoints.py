"""Checkpoints of a run: the latest, and the best by a validation metric. Orbax behind two verbs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxattn.errors import InputError
from jaxattn.state import TrainState


class Checkpoints:
    """The checkpoints in a folder; a context manager that waits for pending writes.

    Attributes:
        best: Step of the best checkpoint, None where there is none.
    """

    def __init__(self, folder: Path):
        """Opens the folder, making it where it is not there."""
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
        """Orbax asks which checkpoints to keep: the latest and the best."""
        del context
        latest = max(checkpoint.step for checkpoint in checkpoints)
        return [checkpoint.step in (latest, self.best) for checkpoint in checkpoints]

    @property
    def latest(self) -> int | None:
        """Step of the latest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: dict[str, Any], *, best: bool) -> None:
        """Saves a state in the background.

        Args:
            state: What `restore` will give back.
            progress: JSON-able memory of the run outside its state.
            best: Whether this one takes the place of the best checkpoint so far.
        """
        step = int(state.step)
        if step == self.latest:
            return
        self.best = step if best else self.best
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                notes=ocp.args.JsonSave({"best": self.best, "progress": progress}),
            ),
        )

    def restore(self, step: int, like: Any) -> tuple[TrainState, dict[str, Any]]:
        """Restores a checkpoint.

        Args:
            step: Its step.
            like: A state of arrays or `jax.ShapeDtypeStruct` with the shardings wanted.

        Returns:
            The state and the progress saved with it.
        """
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
        )
        return restored["state"], self._notes(step)["progress"]

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
            raise InputError(
                f"{self._manager.directory}: no checkpoint there, a trained run wanted"
            )
        return step


def abstract(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Shapes, dtypes and the sharding to restore a tree with."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )
