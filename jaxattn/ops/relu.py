"""A residual block's ReLU."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def residual_relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``flax.linen.relu``, of a sum; on a GPU the gradient reads the result and not the sum.

    The next block keeps the result in any case. XLA's GPU backend fuses the sum into each of its
    consumers and keeps its two terms for the gradient's mask, unless a barrier makes it one array.
    Only reverse-mode differentiation works.
    """
    return lax.platform_dependent(
        x, cuda=lambda x: lax.optimization_barrier(nn.relu(x)), default=nn.relu
    )


def _forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    y = residual_relu(x)
    return y, (x, y)


def _backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    def masked(kept: Array, gradient: Array) -> Array:
        return jnp.where(kept > 0, gradient, 0)

    return (
        lax.platform_dependent(
            *residuals,
            gradient,
            cuda=lambda _, y, gradient: masked(y, gradient),
            default=lambda x, _, gradient: masked(x, gradient),
        ),
    )


residual_relu.defvjp(_forward, _backward)
