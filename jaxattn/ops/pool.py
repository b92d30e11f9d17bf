"""Max pooling: ``flax.linen.max_pool``, with a faster gradient on a CPU and a GPU.

`jaxattn.ops.pool_indices` is that gradient. XLA's GPU backend writes four index arrays and scatters
like its CPU backend: 3.7 GB for the pool of a ResNet's 256 images, where this moves 1.1 GB. On a
TPU XLA's own is better (0.9 GB; this one would move 14 GB) and stays.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxattn.ops.pool_indices import max_indices, max_pool_gradient

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
    indices = _dependent(
        lambda x: max_indices(x, y.shape, window, strides, pads),
        lambda x: jnp.zeros(y.shape, jnp.uint8),
        x,
    )
    return y, (x, indices)


def _backward(window, strides, pads, residuals, gradient):
    def default(x, indices, gradient):
        pool = lambda x: nn.max_pool(x, window, strides=strides, padding=pads)  # noqa: E731
        return jax.vjp(pool, x)[1](gradient)[0]

    def by_index(x, indices, gradient):
        return max_pool_gradient(indices, gradient, x.shape[1:3], window, strides, pads)

    return (_dependent(by_index, default, *residuals, gradient),)


def _dependent(by_index: Callable, default: Callable, *arrays: Array) -> Array:
    return lax.platform_dependent(*arrays, cpu=by_index, cuda=by_index, default=default)


_max_pool.defvjp(_forward, _backward)
