"""The paper's soft attention logits for XLA's CPU backend.

That backend is slow at convolutions with few filters. Here the convolution is one product with the
9 K columns of the kernel and a sum of shifted results: about twice as fast from some 500 channels
on, and as fast below.
"""

import functools
import itertools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def shifted_products(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C K"]
) -> Float[Array, "B K H W"]:
    """A 3×3 convolution with SAME padding, in float32."""
    height, width, channels = x.shape[1:]
    pixels = x.astype(jnp.float32).reshape(-1, channels)
    products = lax.dot_general(_by_filter(kernel), pixels, (((1,), (1,)), ((), ())))
    products = products.reshape(3, 3, -1, *x.shape[:3])
    products = jnp.pad(products, [(0, 0)] * 4 + [(1, 1), (1, 1)])
    taps = itertools.product(range(3), range(3))
    shifted = (products[i, j, :, :, i : i + height, j : j + width] for i, j in taps)
    return functools.reduce(jnp.add, shifted).swapaxes(0, 1)


def shifted_products_gradients(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "3 3 C K"],
    gradient: Float[Array, "B K H W"],
) -> tuple[Float[Array, "B H W C"], Float[Array, "3 3 C K"]]:
    """Gradients of x and the kernel: two products with the nine shifts of the logits' gradient."""
    height, width, channels = x.shape[1:]
    padded = jnp.pad(gradient.swapaxes(0, 1), [(0, 0)] * 2 + [(1, 1), (1, 1)])
    taps = itertools.product((2, 1, 0), (2, 1, 0))
    shifts = jnp.stack([padded[:, :, i : i + height, j : j + width] for i, j in taps])
    shifts = shifts.reshape(9 * kernel.shape[-1], -1)
    to_x = lax.dot_general(shifts, _by_filter(kernel), (((0,), (0,)), ((), ())))
    to_kernel = shifts @ x.astype(jnp.float32).reshape(-1, channels)
    to_kernel = to_kernel.reshape(3, 3, -1, channels).transpose(0, 1, 3, 2)
    return to_x.reshape(x.shape).astype(x.dtype), to_kernel.astype(kernel.dtype)


def _by_filter(kernel: Float[Array, "3 3 C K"]) -> Float[Array, "rows C"]:
    """The kernel as a float32 matrix, one row per tap and filter."""
    return kernel.astype(jnp.float32).transpose(0, 1, 3, 2).reshape(-1, kernel.shape[2])
