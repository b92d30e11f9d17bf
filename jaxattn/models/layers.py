"""Layers that the backbones share."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxattn.errors import InputError
from jaxattn.ops.batch_norm import batch_norm
from jaxattn.ops.conv import conv_general_dilated

#: ``nn.Conv`` for images, parameters and all, only faster on a CPU. Kernels start from Glorot's
#: uniform distribution, as in Keras.
Conv = functools.partial(
    nn.Conv,
    kernel_init=nn.initializers.glorot_uniform(),
    conv_general_dilated=conv_general_dilated,
)


class BatchNorm(nn.Module):
    """``nn.BatchNorm``, parameters, statistics and all, only faster; the momentum is that of Keras.

    Attributes:
        use_running_average: Whether to use the statistics so far, not those of the batch.
        momentum: Share of the statistics so far in the new ones.
        epsilon: Added to the variance.
        use_scale: Whether there is one.
        dtype: Type of the result.
    """

    use_running_average: bool
    momentum: float = 0.99
    epsilon: float = 1e-5
    use_scale: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Returns the normalised features; in training, updates ``batch_stats``."""
        x, channels = x.astype(self.dtype), x.shape[-1:]
        means = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        variances = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        ones = jnp.ones(channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels) if self.use_scale else ones
        bias = self.param("bias", nn.initializers.zeros, channels)
        if self.use_running_average:
            factor = lax.rsqrt(variances.value + self.epsilon) * scale
            return ((x - means.value) * factor + bias).astype(self.dtype)
        y, mean, variance = batch_norm(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            for kept, new in ((means, mean), (variances, variance)):
                kept.value = self.momentum * kept.value + (1 - self.momentum) * new
        return y


class ConvBN(nn.Module):
    """A convolution, batch norm and, if it is to ``activate``, a ReLU.

    The scale, epsilon and momentum are batch norm's. The network can stop at ``conv`` and ``bn``,
    which are also the names of the two layers.
    """

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str | tuple[tuple[int, int], ...] = "SAME"
    activate: bool = True
    use_bias: bool = False
    use_scale: bool = True
    epsilon: float = 1e-3
    momentum: float = 0.99
    groups: int = 1
    kernel_init: Any = nn.initializers.glorot_uniform()
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
            feature_group_count=self.groups,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)
        if stop == ("conv",):
            return x
        x = BatchNorm(
            use_running_average=not train,
            use_scale=self.use_scale,
            epsilon=self.epsilon,
            momentum=self.momentum,
            dtype=self.dtype,
            name="bn",
        )(x)
        return nn.relu(x) if self.activate and stop != ("bn",) else x


class ConvReluBN(nn.Module):
    """A convolution with bias, a ReLU, then batch norm: the order of networks built by hand.

    The network can stop at ``conv``, before the ReLU, and at ``relu``, before batch norm.
    """

    features: int
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: str = "SAME"
    kernel_init: Any = nn.initializers.glorot_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, stop: tuple[str, ...] = ()
    ) -> Float[Array, "B h w D"]:
        """Returns the normalised activations, or what there is at ``stop``."""
        x = Conv(
            self.features,
            self.kernel,
            strides=(self.stride, self.stride),
            padding=self.padding,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)
        if stop == ("conv",):
            return x
        x = nn.relu(x)
        if stop == ("relu",):
            return x
        return BatchNorm(use_running_average=not train, epsilon=1e-3, dtype=self.dtype, name="bn")(
            x
        )


def residual(shortcut: Float[Array, "B H W C"], x: Float[Array, "B H W D"]) -> Array:
    """The sum of a block's shortcut and its branch.

    Raises:
        InputError: They differ in their channels, because something plugged in before the block
            returns more channels than it is given.
    """
    if shortcut.shape != x.shape:
        raise InputError(
            f"a residual block of {x.shape[-1]} channels is given {shortcut.shape[-1]}; attention "
            "plugged in before it must keep the channels, or be at another endpoint"
        )
    return shortcut + x
