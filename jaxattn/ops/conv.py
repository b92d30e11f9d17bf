"""Convolution of images: ``lax.conv_general_dilated``, rewritten where XLA's CPU backend is slow.

On a CPU, unpadded 1×1 convolutions and grouped ones become matrix products and depthwise ones sums
over taps (`jaxattn.ops.cpu`), and the activations and gradients that the backward pass reads twice
are not recomputed (`jaxattn.ops.cpu.no_fuse`). On other backends everything is
``lax.conv_general_dilated``.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float

from jaxattn.ops.cpu.depthwise_conv import depthwise_conv, depthwise_conv_gradients
from jaxattn.ops.cpu.grouped_conv import grouped_conv
from jaxattn.ops.cpu.no_fuse import no_fuse
from jaxattn.ops.cpu.pointwise_conv import pointwise_conv, pointwise_conv_gradients

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

Strides = tuple[int, int]
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

    ``flax.linen.Conv`` takes it as its ``conv_general_dilated``. Without groups or dilation, only
    reverse-mode differentiation works, to any order.

    Args:
        lhs: Images.
        rhs: Kernel.
        window_strides: Vertical and horizontal.
        padding: ``'SAME'``, ``'VALID'`` or zeros (before, after), vertically and horizontally.
        lhs_dilation: See ``lax``.
        rhs_dilation: See ``lax``.
        dimension_numbers: See ``lax``; if given, that of NHWC, HWIO and NHWC.
        feature_group_count: See ``lax``.
        precision: See ``lax``.
        **options: See ``lax``.

    Returns:
        Images of the dtype of ``lhs``.
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
    vertical, horizontal = window_strides
    strides = (vertical, horizontal)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((int(before), int(after)) for before, after in padding)
    if feature_group_count == 1:
        return _conv(lhs, rhs, strides, pads, precision)
    if feature_group_count == lhs.shape[-1] == rhs.shape[-1]:
        return _depthwise(lhs, rhs, strides, pads, precision)
    settings = (strides, pads, feature_group_count, precision)
    return lax.platform_dependent(
        lhs,
        rhs,
        cpu=lambda x, kernel: grouped_conv(x, kernel, *settings),
        default=lambda x, kernel: _lax_conv(x, kernel, *settings),
    )


def _lax_conv(
    x: Array, kernel: Array, strides: Strides, pads: Pads, groups: int, precision: Any
) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        dimension_numbers=DIMENSIONS,
        feature_group_count=groups,
        precision=precision,
    )


def _lax_gradients(
    x: Array,
    kernel: Array,
    gradient: Array,
    strides: Strides,
    pads: Pads,
    groups: int,
    precision: Any,
) -> tuple[Array, Array]:
    """Gradients of the images and the kernel, as ``lax`` computes them."""
    settings = (strides, pads, groups, precision)
    to_image = jax.linear_transpose(lambda x: _lax_conv(x, kernel, *settings), x)
    to_kernel = jax.linear_transpose(lambda kernel: _lax_conv(x, kernel, *settings), kernel)
    return *to_image(gradient), *to_kernel(gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: Array, kernel: Array, strides: Strides, pads: Pads, precision: Any) -> Array:
    def default(x, kernel):
        return _lax_conv(x, kernel, strides, pads, 1, precision)

    if not _is_pointwise(kernel, pads):
        return default(x, kernel)

    def cpu(x, kernel):
        return pointwise_conv(x, kernel, strides, precision)

    return lax.platform_dependent(x, kernel, cpu=cpu, default=default)


def _is_pointwise(kernel: Array, pads: Pads) -> bool:
    """Whether each output reads one pixel, and padding neither adds nor removes any."""
    return kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0))


def _conv_forward(x, kernel, strides, pads, precision):
    # Otherwise XLA computes x twice: for the output, and to keep it for the backward pass.
    x = no_fuse(x)
    return _conv(x, kernel, strides, pads, precision), (x, kernel)


def _conv_backward(strides, pads, precision, residuals, gradient):
    def default(x, kernel, gradient):
        return _lax_gradients(x, kernel, gradient, strides, pads, 1, precision)

    def cpu(x, kernel, gradient):
        # Otherwise XLA computes it once for each of the two gradients.
        gradient = no_fuse(gradient)
        if _is_pointwise(kernel, pads):
            return pointwise_conv_gradients(x, kernel, gradient, strides, precision)
        return default(x, kernel, gradient)

    return lax.platform_dependent(*residuals, gradient, cpu=cpu, default=default)


_conv.defvjp(_conv_forward, _conv_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(x: Array, kernel: Array, strides: Strides, pads: Pads, precision: Any) -> Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: depthwise_conv(x, kernel, strides, pads),
        default=lambda x, kernel: _lax_conv(x, kernel, strides, pads, x.shape[-1], precision),
    )


def _depthwise_forward(x, kernel, strides, pads, precision):
    return _depthwise(x, kernel, strides, pads, precision), (x, kernel)


def _depthwise_backward(strides, pads, precision, residuals, gradient):
    def default(x, kernel, gradient):
        return _lax_gradients(x, kernel, gradient, strides, pads, x.shape[-1], precision)

    def cpu(x, kernel, gradient):
        return depthwise_conv_gradients(x, kernel, gradient, strides, pads)

    return lax.platform_dependent(*residuals, gradient, cpu=cpu, default=default)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)
