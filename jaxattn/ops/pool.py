"""Max pooling: ``flax.linen.max_pool``, with a faster gradient on a CPU.

`jaxattn.ops.cpu.max_pool` is that gradient; other backends compute XLA's.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxattn.ops.cpu.max_pool import max_indices, max_pool_gradient

Pads = tuple[tuple[int, int], ...]


def max_pool(
    x: Float[Array, "B H W C"],
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: str | Sequence[tuple[int, int]],
) -> Float[Array, "B h w C"]:
    """``flax.linen.max_pool``.

    Of equal maxima in a window, the first, row by row, receives the gradient. Only reverse-mode
    differentiation works.

    Args:
        x: Images.
        window: Height and width, pixels.
        strides: Vertical and horizontal, pixels.
        padding: ``'SAME'``, ``'VALID'`` or pixels (before, after), vertically and horizontally;
            padding is never a maximum.
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    pads = tuple((int(before), int(after)) for before, after in padding)
    return _max_pool(x, tuple(window), tuple(strides), pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Array, window: tuple, strides: tuple, pads: Pads) -> Array:
    return nn.max_pool(x, window, strides=strides, padding=pads)


def _forward(x, window, strides, pads):
    y = _max_pool(x, window, strides, pads)
    indices = lax.platform_dependent(
        x,
        cpu=lambda x: max_indices(x, y.shape, window, strides, pads),
        default=lambda x: jnp.zeros(y.shape, jnp.uint8),
    )
    return y, (x, indices)


def _backward(window, strides, pads, residuals, gradient):
    def default(x, indices, gradient):
        pool = lambda x: nn.max_pool(x, window, strides=strides, padding=pads)  # noqa: E731
        return jax.vjp(pool, x)[1](gradient)[0]

    def cpu(x, indices, gradient):
        return max_pool_gradient(indices, gradient, x.shape[1:3], window, strides, pads)

    return (lax.platform_dependent(*residuals, gradient, cpu=cpu, default=default),)


_max_pool.defvjp(_forward, _backward)
