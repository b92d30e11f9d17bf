"""The training state: one pytree that a step takes and returns."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jaxattn.freezing import Frozen

Variables = dict[str, Any]


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes from step to step; all else is a pure function of the step.

    Attributes:
        step: Steps taken, int32 scalar.
        params: Parameters, float32.
        batch_stats: Batch statistics, float32.
        opt_state: State of the optimizer.
        ema: Exponential moving average of params and batch_stats, or None.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any

    @property
    def variables(self) -> Variables:
        """What the model is trained with: params and batch_stats."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> Variables:
        """What the model is evaluated with: the EMA if there is one."""
        return self.variables if self.ema is None else self.ema


def create(
    key: Key[Array, ""],
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    input_shape: tuple[int, ...],
    ema: bool = False,
    frozen: Frozen = Frozen(),
) -> TrainState:
    """The state before the first step; to be jitted with its shardings.

    Args:
        key: Random key of the initial parameters.
        model: Called ``(images, *, train)``.
        optimizer: Its state is initialised for the parameters that are trained.
        input_shape: Of one input: ``(height, width, 3)``, or ``(crops, height, width, 3)``.
        ema: Whether to keep an exponential moving average.
        frozen: Layers that are not trained.
    """
    variables = model.init(key, jnp.zeros((1, *input_shape), jnp.float32), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    average = {"params": params, "batch_stats": batch_stats} if ema else None
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(frozen.trained(params)),
        ema=jax.tree.map(jnp.copy, average),
    )
