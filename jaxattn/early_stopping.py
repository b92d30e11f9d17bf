"""Best-checkpoint and early-stopping state."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

LOWER_IS_BETTER = ("loss",)


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """What decides on the best checkpoint and on stopping; saved with each checkpoint.

    Attributes:
        best: Best value of ``config.best`` so far, None before the first validation.
        stopping: Best value of ``config.early_stopping.metric`` so far.
        waited: Epochs since ``stopping`` improved by more than ``min_delta``.
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
        """Whether ``config.early_stopping.patience`` epochs passed without improvement."""
        return 0 < config.early_stopping.patience <= self.waited


def _improves(metric: str, value: float, best: float | None, min_delta: float = 0.0) -> bool:
    if best is None or np.isnan(best):
        return True
    return value < best - min_delta if metric in LOWER_IS_BETTER else value > best + min_delta
