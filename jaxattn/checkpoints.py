"""Checkpoints of a run: the latest, and the best by a validation metric. Orbax behind two verbs."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxattn.errors import InputError
from jaxattn.state import TrainState


class Checkpoints:
    """The checkpoints in a folder; a context manager that waits for pending writes."""

    def __init__(self, folder: Path):
        """Opens the folder, making it where it is not there."""
        improved = policies.BestN(
            get_metric_fn=lambda metrics: metrics["order"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics["order"],
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), improved]),
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """Step of the latest checkpoint, None where there is none."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the best checkpoint, None where there is none."""
        # Without any metrics Orbax answers with the latest step.
        step = self._manager.best_step()
        return step if step is not None and self._manager.metrics(step) else None

    def save(self, state: TrainState, progress: dict[str, Any], *, best: bool) -> None:
        """Saves a state in the background.

        Args:
            state: What `restore` will give back.
            progress: JSON-able memory of the run outside its state.
            best: Whether this one takes the place of the best checkpoint so far.
        """
        step = int(state.step)
        if step == self.latest and not best:
            return
        # The best is the last one that was called so: which metric that was is the caller's matter.
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
            ),
            metrics={"order": step} if best else None,
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
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["progress"]

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
