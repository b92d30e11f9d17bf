"""Convolution of images that is fast on a CPU too.

XLA's CPU backend has fast convolutions (see `jaxattn.runtime.compilation.options`) and faster
matrix products, but does not turn a 1×1 convolution into a product, and recomputes elementwise work
in every consumer. Here 1×1 convolutions, with any stride, are products, and the activations and
gradients that a convolution's backward pass reads are kept (`no_fuse`). On other backends
everything is ``lax.conv_general_dilated``.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxattn.ops.cpu.grouped_conv import grouped_conv
from jaxattn.ops.cpu.no_fuse import no_fuse

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

Pads = tuple[tuple[int, int], ...]


def conv_general_dilated(
    lhs: Float[Array, "B H W C"],
    rhs: Float[Array, "h w c D"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    **options: Any,
) -> Float[Array, "B h_out w_out D"]:
    """``lax.conv_general_dilated`` for NHWC images and HWIO kernels, faster on a CPU.

    It is what ``flax.linen.Conv`` takes as its ``conv_general_dilated``. Dilated convolutions are
    passed on to ``lax``, those in groups to `grouped_conv`. The others know reverse-mode
    derivatives only, of any order.

    Args:
        lhs: Images.
        rhs: Kernel.
        window_strides: Down and across.
        padding: ``'SAME'``, ``'VALID'`` or the zeros (before, after) down and across.
        lhs_dilation: See ``lax``.
        rhs_dilation: See ``lax``.
        dimension_numbers: See ``lax``; where given, those of NHWC, HWIO and NHWC.
        feature_group_count: See ``lax``.
        precision: See ``lax``.
        **options: See ``lax``.

    Returns:
        Images, of the type of ``lhs``.
    """
    dilated = any(each != 1 for each in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    if dilated or lhs.ndim != 4 or options:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers or DIMENSIONS,
            feature_group_count=feature_group_count,
            precision=precision,
            **options,
        )
    down, across = window_strides
    strides = (down, across)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((int(before), int(after)) for before, after in padding)
    if feature_group_count != 1:
        return grouped_conv(lhs, rhs, strides, pads, feature_group_count, precision)
    return _conv(lhs, rhs, strides, pads, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: Array, kernel: Array, strides: tuple, pads: Pads, precision: Any) -> Array:
    def default(x, kernel):
        return _lax_conv(x, kernel, strides, pads, precision)

    if not _is_pointwise(kernel, pads):
        return default(x, kernel)

    def cpu(x, kernel):
        return _matmul(x[:, :: strides[0], :: strides[1]], kernel[0, 0], precision)

    return lax.platform_dependent(x, kernel, cpu=cpu, default=default)


def _is_pointwise(kernel: Array, pads: Pads) -> bool:
    """Whether each output is of one pixel, and every pixel (of a stride) has an output."""
    return kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0))


def _conv_forward(x, kernel, strides, pads, precision):
    # XLA would compute it once for the output and once, in another form, to keep it.
    x = no_fuse(x)
    return _conv(x, kernel, strides, pads, precision), (x, kernel)


def _conv_backward(strides, pads, precision, residuals, gradient):
    def default(x, kernel, gradient):
        return _transposed(x, kernel, gradient, strides, pads, precision)

    def cpu(x, kernel, gradient):
        # XLA would compute it anew for each of the two, in the form that it needs.
        gradient = no_fuse(gradient)
        if not _is_pointwise(kernel, pads):
            return default(x, kernel, gradient)
        to_image = _matmul(gradient, kernel[0, 0].T, precision)
        met = x[:, :: strides[0], :: strides[1]].reshape(-1, x.shape[-1])
        to_kernel = _long_product(met, gradient.reshape(-1, gradient.shape[-1]), precision)
        return (
            _spread(to_image, x.shape[1:3], strides),
            to_kernel.reshape(kernel.shape).astype(kernel.dtype),
        )

    return lax.platform_dependent(*residuals, gradient, cpu=cpu, default=default)


_conv.defvjp(_conv_forward, _conv_backward)


def _lax_conv(x: Array, kernel: Array, strides: tuple, pads: Pads, precision: Any) -> Array:
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=DIMENSIONS, precision=precision
    )


def _matmul(x: Array, matrix: Array, precision: Any) -> Array:
    return lax.dot_general(x, matrix, (((3,), (0,)), ((), ())), precision=precision)


def _spread(x: Array, shape: tuple[int, ...], strides: tuple) -> Array:
    """Every pixel at its place in an image of that shape, zeros between them."""
    if strides == (1, 1):
        return x
    zeros = [
        (0, side - (had - 1) * stride - 1, stride - 1)
        for side, had, stride in zip(shape, x.shape[1:3], strides, strict=True)
    ]
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *zeros, (0, 0, 0)))


def _transposed(
    x: Array, kernel: Array, gradient: Array, strides: tuple, pads: Pads, precision: Any
) -> tuple[Array, Array]:
    """Gradients of the images and the kernel as ``lax`` has them."""
    to_image = jax.linear_transpose(lambda x: _lax_conv(x, kernel, strides, pads, precision), x)
    to_kernel = jax.linear_transpose(lambda k: _lax_conv(x, k, strides, pads, precision), kernel)
    return *to_image(gradient), *to_kernel(gradient)


def _long_product(x: Array, y: Array, precision: Any) -> Array:
    """``x.T @ y`` with a long sum: faster with the more columns on the right."""
    if x.shape[1] <= y.shape[1]:
        return jnp.matmul(x.T, y, precision=precision)
    # Without the barrier XLA would turn it round again.
    return lax.optimization_barrier(jnp.matmul(y.T, x, precision=precision)).T
