"""Unpadded 1×1 convolution for XLA's CPU backend: matrix products, which are faster there."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def pointwise_conv(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "1 1 C D"],
    strides: tuple[int, int],
    precision: Any = None,
) -> Float[Array, "B h w D"]:
    """The convolution of every stride-th pixel as one product.

    Args:
        x: Images.
        kernel: One weight matrix.
        strides: Vertical and horizontal.
        precision: See ``lax``.
    """
    return _matmul(x[:, :: strides[0], :: strides[1]], kernel[0, 0], precision)


def pointwise_conv_gradients(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "1 1 C D"],
    gradient: Float[Array, "B h w D"],
    strides: tuple[int, int],
    precision: Any = None,
) -> tuple[Float[Array, "B H W C"], Float[Array, "1 1 C D"]]:
    """Gradients of the images and the kernel, each as one product.

    Args:
        x: Images.
        kernel: One weight matrix.
        gradient: Gradient of the result.
        strides: Vertical and horizontal.
        precision: See ``lax``.
    """
    to_image = _matmul(gradient, kernel[0, 0].T, precision)
    pixels = x[:, :: strides[0], :: strides[1]].reshape(-1, x.shape[-1])
    to_kernel = _long_product(pixels, gradient.reshape(-1, gradient.shape[-1]), precision)
    return (
        _dilate(to_image, x.shape[1:3], strides),
        to_kernel.reshape(kernel.shape).astype(kernel.dtype),
    )


def _matmul(x: Array, matrix: Array, precision: Any) -> Array:
    return lax.dot_general(x, matrix, (((3,), (0,)), ((), ())), precision=precision)


def _dilate(x: Array, shape: tuple[int, ...], strides: tuple[int, int]) -> Array:
    """Puts the pixels back in their places in an image of that height and width, zeros between."""
    if strides == (1, 1):
        return x
    zeros = [
        (0, side - (length - 1) * stride - 1, stride - 1)
        for side, length, stride in zip(shape, x.shape[1:3], strides, strict=True)
    ]
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *zeros, (0, 0, 0)))


def _long_product(x: Array, y: Array, precision: Any) -> Array:
    """``x.T @ y`` over a long axis, which is faster with the wider matrix on the right."""
    if x.shape[1] <= y.shape[1]:
        return jnp.matmul(x.T, y, precision=precision)
    # Without the barrier XLA would swap the operands back.
    return lax.optimization_barrier(jnp.matmul(y.T, x, precision=precision)).T
