"""Best-checkpoint and early-stopping state."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

LOWER_IS_BETTER = ("loss",)


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """What decides on the best checkpoint and on stopping; saved with each checkpoint.

    Attributes:
        best: Best value of ``config.best`` so far, None before the first validation.
        stopping: Best value of ``config.early_stopping.metric`` so far.
        waited: Validations since ``stopping`` improved by more than ``min_delta``.
    """

    best: float | None = None
    stopping: float | None = None
    waited: int = 0

    def update(self, values: Mapping[str, float], config: ConfigDict) -> "EarlyStopping":
        """The state after one more validation."""
        best, stop = config.best, config.early_stopping
        better = _improves(best, values[best], self.best)
        improves = _improves(stop.metric, values[stop.metric], self.stopping, stop.min_delta)
        return EarlyStopping(
            best=values[best] if better else self.best,
            stopping=values[stop.metric] if improves else self.stopping,
            waited=0 if improves else self.waited + 1,
        )

    def should_stop(self, config: ConfigDict) -> bool:
        """Whether ``config.early_stopping.patience`` validations passed without improvement."""
        return 0 < config.early_stopping.patience <= self.waited


@dataclasses.dataclass(frozen=True)
class Progress:
    """State of a run besides its `TrainState`, saved with each checkpoint.

    Attributes:
        stopping: Of early stopping.
        validated: Whether the last epoch that ended was validated.
        skipped: Steps without effect, because something was not finite.
    """

    stopping: EarlyStopping = EarlyStopping()
    validated: bool = True
    skipped: int = 0

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        own = {"validated": self.validated, "skipped": self.skipped}
        return dataclasses.asdict(self.stopping) | own

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Progress":
        """Reads what a checkpoint of any version says."""
        fields = dict(saved)
        own = {name: fields.pop(name) for name in ("validated", "skipped") if name in fields}
        return cls(EarlyStopping(**fields), **own)


def _improves(metric: str, value: float, best: float | None, min_delta: float = 0.0) -> bool:
    if best is None or np.isnan(best):
        return True
    return value < best - min_delta if metric in LOWER_IS_BETTER else value > best + min_delta
