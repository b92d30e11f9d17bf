"""Stops a run whose numbers are not finite, before they reach a checkpoint."""

import sys
from typing import Any

import jax
import numpy as np

from jaxattn import steps
from jaxattn.data.dataset import Dataset
from jaxattn.data.samplers import Sampler
from jaxattn.errors import InputError
from jaxattn.state import TrainState

_HINT = "a lower optimizer.learning_rate or dtype=float32 may help"


class Watch:
    """Looks at the steps of a run whenever the host reads their metrics anyway.

    Attributes:
        skipped: Steps that were not finite, and were tolerated.
    """

    def __init__(self, dataset: Dataset, sampler: Sampler, tolerated: int, skipped: int):
        """Tolerates ``config.skip_nonfinite`` steps in the whole run, ``skipped`` of them so far.

        With 0 a step that is not finite has changed the state; otherwise it has not.
        """
        self.skipped = skipped
        self._dataset, self._sampler, self._tolerated = dataset, sampler, tolerated
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._state_is_finite = jax.jit(steps.all_finite)

    def add(self, step: int, measured: dict[str, Any]) -> None:
        """Adds the metrics of the step from ``step`` to the next, still on the device."""
        kept = {name: measured[name] for name in ("finite", "loss")}
        self._pending.append((step, kept))

    def check(self, saved: int | None) -> None:
        """Checks the steps since the last check.

        Args:
            saved: Step of the latest checkpoint, for the message.

        Raises:
            InputError: More steps than tolerated were not finite.
        """
        pending, self._pending = jax.device_get(self._pending), []
        for step, measured in pending:
            if measured["finite"]:
                continue
            self.skipped += 1
            if self.skipped > self._tolerated:
                raise self._error(step, float(measured["loss"]), saved)

    def check_state(self, state: TrainState, saved: int | None) -> None:
        """Raises InputError if a state that is to be saved is not finite."""
        self.check(saved)
        if not self._state_is_finite(state):
            raise InputError(
                f"state: expected finite numbers, got NaN or infinity after step {int(state.step)}"
                f"{self._advice(saved)}"
            )

    def _error(self, step: int, loss: float, saved: int | None) -> InputError:
        what = "gradients" if np.isfinite(loss) else "loss"
        given = "NaN or infinity" if np.isfinite(loss) else loss
        ids = ", ".join(self._dataset.table["image_id"][self._sampler.batch(step)].tolist())
        count = f" for the {self.skipped}th time" if self._tolerated else ""
        return InputError(
            f"{what}: expected a finite number, got {given} in step {step + 1}{count}"
            f"{self._advice(saved)}; its images: {ids}",
            longest=sys.maxsize,
        )

    def _advice(self, saved: int | None) -> str:
        kept = f"; the checkpoint of step {saved} is kept" if saved is not None else ""
        tolerate = "" if self._tolerated else ", skip_nonfinite=N tolerates N such steps"
        return f"{kept}; {_HINT}{tolerate}"
