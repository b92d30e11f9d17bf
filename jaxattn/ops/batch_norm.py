"""Batch norm for training, whose gradient stores nothing but the layer's input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxattn.ops.cpu.no_fuse import no_fuse

_AXES = (0, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: Float[Array, "B H W C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    epsilon: float,
) -> tuple[Float[Array, "B H W C"], Float[Array, " C"], Float[Array, " C"]]:
    """Normalises each channel by its mean and variance over batch and positions.

    The same values as ``flax.linen.BatchNorm``: sums in float32, and the variance as the mean of
    squares minus the squared mean. With automatic differentiation XLA stores ``x - mean`` in the
    forward pass and writes the scaled gradient out between two sums; this gradient reads x again
    instead. Only reverse-mode differentiation works.

    Args:
        x: Features, float32 or bfloat16.
        scale: Standard deviation of the result.
        bias: Mean of the result.
        epsilon: Added to the variance.

    Returns:
        The normalised features, of the dtype of ``x``; their means and variances, float32.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    exact = x.astype(jnp.float32)
    mean = exact.mean(_AXES)
    # Rounding can make it negative.
    variance = jnp.maximum(0.0, jnp.square(exact).mean(_AXES) - jnp.square(mean))
    inverse = lax.rsqrt(variance + epsilon)
    y = (exact - _wide(mean)) * _wide(inverse * scale) + _wide(bias)
    return (y.astype(x.dtype), mean, variance), (x, scale, mean, variance, inverse)


def _backward(epsilon, residuals, gradients):
    x, scale, mean, variance, inverse = residuals
    gradient, of_mean, of_variance = gradients
    x, gradient = (no_fuse(each).astype(jnp.float32) for each in (x, gradient))
    count = x.size // x.shape[-1]
    total = gradient.sum(_AXES)
    # Not a sum over x - mean, which XLA would write out. The variance has lost more digits already.
    along = (gradient * x).sum(_AXES) - mean * total
    per_pixel = (of_mean - inverse * scale * total) / count
    # Where the variance was clipped at zero, it does not depend on x.
    slope = jnp.where(variance > 0, (2 * of_variance - inverse**3 * scale * along) / count, 0.0)
    to_x = gradient * _wide(inverse * scale) + (x - _wide(mean)) * _wide(slope) + _wide(per_pixel)
    return to_x.astype(residuals[0].dtype), inverse * along, total


def _wide(channels: Float[Array | np.ndarray, " C"]) -> Float[Array | np.ndarray, "1 1 1 C"]:
    """One value per channel, to broadcast over batch and positions."""
    return channels.reshape(1, 1, 1, -1)


batch_norm.defvjp(_forward, _backward)
