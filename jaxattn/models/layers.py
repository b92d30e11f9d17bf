"""Layers that the backbones share."""

import functools
from typing import Any

from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float


def conv_general_dilated(
    lhs: Float[Array, "B H W C"],
    rhs: Float[Array, "h w c D"],
    window_strides: Any,
    padding: Any,
    **options: Any,
) -> Float[Array, "B h_out w_out D"]:
    """``lax.conv_general_dilated``, with 1×1 convolutions as matrix products on a CPU.

    There, XLA's CPU convolution is slower than its matrix product, by up to three times with the
    gradient. Elsewhere nothing changes. Arguments and result are those of ``lax``, for NHWC
    features and HWIO kernels.
    """

    def convolve(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)

    def multiply(x: Array, kernel: Array) -> Array:
        return lax.dot_general(
            x, kernel[0, 0], (((3,), (0,)), ((), ())), precision=options.get("precision")
        )

    pointwise = (
        rhs.shape[:2] == (1, 1)
        and rhs.shape[2] == lhs.shape[-1]
        and tuple(window_strides) == (1, 1)
        and padding in ("SAME", "VALID")
    )
    if not pointwise:
        return convolve(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=multiply, default=convolve)


#: ``nn.Conv`` for images, parameters and all, only faster on a CPU where its kernel is 1×1.
#: Kernels start from Glorot's uniform distribution, as in Keras.
Conv = functools.partial(
    nn.Conv,
    kernel_init=nn.initializers.glorot_uniform(),
    conv_general_dilated=conv_general_dilated,
)
