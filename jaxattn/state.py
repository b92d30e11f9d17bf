"""The training state: one pytree that a step takes and gives back."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

Variables = dict[str, Any]


class TrainState(flax.struct.PyTreeNode):
    """All that changes from step to step; everything else is a pure function of the step.

    Attributes:
        step: Steps taken, int32 scalar.
        params: Parameters, float32.
        batch_stats: Batch statistics, float32.
        opt_state: State of the optimizer.
        average: Exponential moving average of params and batch_stats, or None.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    average: Any

    @property
    def variables(self) -> Variables:
        """What the model is trained with: params and batch_stats."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> Variables:
        """What the model is evaluated with: the moving average where there is one."""
        return self.variables if self.average is None else self.average


def create(
    key: Key[Array, ""],
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    averaged: bool,
) -> TrainState:
    """The state before the first step; to be jitted with its shardings.

    Args:
        key: Random key of the initial parameters.
        model: Called ``(images, *, train)``.
        optimizer: Its state is made for the parameters.
        image_shape: Height, width, channels; before them the number of crops, if there are several.
        averaged: Whether a moving average is kept.
    """
    variables = model.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    average = {"params": params, "batch_stats": batch_stats} if averaged else None
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        average=jax.tree.map(jnp.copy, average),
    )
