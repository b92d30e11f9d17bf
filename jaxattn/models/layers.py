"""Layers that the backbones share."""

import functools

from flax import linen as nn

from jaxattn.ops.conv import conv_general_dilated

#: ``nn.Conv`` for images, parameters and all, only faster on a CPU. Kernels start from Glorot's
#: uniform distribution, as in Keras.
Conv = functools.partial(
    nn.Conv,
    kernel_init=nn.initializers.glorot_uniform(),
    conv_general_dilated=conv_general_dilated,
)
