"""Batch norm in training, with a gradient that keeps no more than the layer's input."""

import functools

import jax
import jax.numpy as jnp
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

    The values are those of ``flax.linen.BatchNorm``: sums in float32, the variance as the mean of
    squares minus the squared mean. Left to automatic differentiation XLA keeps ``x - mean`` from
    the forward pass and writes the scaled gradient between two sums; this reads the input again.
    Reverse-mode derivatives only.

    Args:
        x: Features, float32 or bfloat16.
        scale: Standard deviation of the result.
        bias: Mean of the result.
        epsilon: Added to the variance.

    Returns:
        The normalised features, of the type of ``x``; their means and variances, float32.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    exact = x.astype(jnp.float32)
    mean = exact.mean(_AXES)
    # Rounding may leave less than nothing.
    variance = jnp.maximum(0.0, jnp.square(exact).mean(_AXES) - jnp.square(mean))
    inverse = lax.rsqrt(variance + epsilon)
    y = (exact - mean) * (inverse * scale) + bias
    return (y.astype(x.dtype), mean, variance), (x, scale, mean, variance, inverse)


def _backward(epsilon, residuals, gradients):
    x, scale, mean, variance, inverse = residuals
    gradient, of_mean, of_variance = gradients
    x, gradient = (no_fuse(each).astype(jnp.float32) for each in (x, gradient))
    count = x.size // x.shape[-1]
    total = gradient.sum(_AXES)
    # Not of x - mean, which XLA would write out. The variance has lost more digits already.
    along = (gradient * x).sum(_AXES) - mean * total
    per_pixel = (of_mean - inverse * scale * total) / count
    # Where the variance was cut off at zero it does not move with x.
    slope = jnp.where(variance > 0, (2 * of_variance - inverse**3 * scale * along) / count, 0.0)
    to_x = gradient * (inverse * scale) + (x - mean) * slope + per_pixel
    return to_x.astype(residuals[0].dtype), inverse * along, total


batch_norm.defvjp(_forward, _backward)
