"""Grouped convolution for XLA's CPU backend: one batched matrix product per kernel tap.

XLA's CPU backend has no fast grouped convolution; its general one is about a hundred times slower
than this. Two alternatives were measured and are slower: one product over the windows of all taps,
and a plain convolution with zeros in the kernel between the groups (``benchmarks/README.md``).
"""

import functools
import operator

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Pads = tuple[tuple[int, int], ...]


def grouped_conv(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "h w c D"],
    strides: tuple[int, int],
    pads: Pads,
    groups: int,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "B h_out w_out D"]:
    """``lax.conv_general_dilated`` with ``feature_group_count=groups``.

    Args:
        x: Images with C = c · groups channels, group by group.
        kernel: Its D output channels are group by group too.
        strides: Vertical and horizontal.
        pads: Zeros before and after, vertically and horizontally; negative numbers crop.
        groups: Number of groups.
        precision: See ``lax``.
    """
    height, width, channels, features = kernel.shape
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))
    sides = [
        (side - window) // stride + 1
        for side, window, stride in zip(x.shape[1:3], (height, width), strides, strict=True)
    ]
    reach = [(side - 1) * stride + 1 for side, stride in zip(sides, strides, strict=True)]
    by_group = kernel.reshape(height, width, channels, groups, features // groups)

    def tap(i: int, j: int) -> Array:
        pixels = x[:, i : i + reach[0] : strides[0], j : j + reach[1] : strides[1]]
        pixels = pixels.reshape(-1, groups, channels)
        return jnp.einsum("ngc,cgd->gnd", pixels, by_group[i, j], precision=precision)

    taps = [tap(i, j) for i in range(height) for j in range(width)]
    total = functools.reduce(operator.add, taps)
    return total.swapaxes(0, 1).reshape(x.shape[0], *sides, features)
