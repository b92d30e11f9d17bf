"""Layers that the backbones share."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.ops.conv import conv_general_dilated

#: ``nn.Conv`` for images, parameters and all, only faster on a CPU. Kernels start from Glorot's
#: uniform distribution, as in Keras.
Conv = functools.partial(
    nn.Conv,
    kernel_init=nn.initializers.glorot_uniform(),
    conv_general_dilated=conv_general_dilated,
)

#: ``nn.BatchNorm`` with the momentum of Keras.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.99)


class ConvBN(nn.Module):
    """A convolution, batch norm and, if it is to ``activate``, a ReLU.

    The epsilon and the scale are batch norm's. The network can stop at ``conv`` and ``bn``, which
    are also the names of the two layers.
    """

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str | tuple[tuple[int, int], ...] = "SAME"
    activate: bool = True
    use_bias: bool = False
    use_scale: bool = True
    epsilon: float = 1e-3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, stop: tuple[str, ...] = ()
    ) -> Float[Array, "B h w D"]:
        """Returns the activations, or what precedes them if ``stop`` is conv or bn."""
        x = Conv(
            self.features,
            self.kernel,
            strides=(self.stride, self.stride),
            padding=self.padding,
            use_bias=self.use_bias,
            dtype=self.dtype,
            name="conv",
        )(x)
        if stop == ("conv",):
            return x
        x = BatchNorm(
            use_running_average=not train,
            use_scale=self.use_scale,
            epsilon=self.epsilon,
            dtype=self.dtype,
            name="bn",
        )(x)
        return nn.relu(x) if self.activate and stop != ("bn",) else x
