"""Layers that backbones share."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float

from jaxattn.errors import invalid
from jaxattn.ops.batch_norm import batch_norm
from jaxattn.ops.conv import conv_general_dilated

#: ``nn.Conv`` for images, with the same parameters, and faster on a CPU. Kernels start from
#: Glorot's uniform distribution, as in Keras.
Conv = functools.partial(
    nn.Conv,
    kernel_init=nn.initializers.glorot_uniform(),
    conv_general_dilated=conv_general_dilated,
)


#: He et al. 2015 for layers followed by a ReLU: forwards (fan-in) and backwards (fan-out).
HE_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _constant_bias(*arrays: Array | None, dtype: Any = None, **options: Any) -> list[Array | None]:
    """``nn.Conv``'s conversion of input, kernel and bias to one type; the bias has no gradient.

    For convolutions before a batch norm that uses the batch's own statistics, which take the bias
    away again. Its gradient is zero, but automatic differentiation sums it up out of rounding
    errors, for which XLA writes out every batch norm's input gradient. The bias is still added: the
    running mean contains it.
    """
    x, kernel, bias = arrays
    bias = None if bias is None else lax.stop_gradient(bias)
    return promote_dtype(x, kernel, bias, dtype=dtype, **options)


_groups: contextvars.ContextVar[int] = contextvars.ContextVar("groups", default=1)


@contextlib.contextmanager
def batch_norm_groups(count: int) -> Iterator[None]:
    """Within it, `BatchNorm` normalises each of ``count`` parts of a batch by itself.

    What data-parallel training without synchronised statistics computes, each device its part
    (PyTorch's DataParallel, Keras' MirroredStrategy), and ghost batch norm (Hoffer et al. 2017).
    Device i has part i, so devices exchange no statistics in a layer. The running statistics take
    the mean of the parts' means and variances, as MirroredStrategy does; DataParallel takes those
    of the first part.

    Raises:
        InputError: A layer is Flax's own batch norm, which cannot do so.
    """

    def refuse(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.BatchNorm):
            given = f"{count}, and {'/'.join(context.module.path)} is Flax's, which has one group"
            raise invalid("batch_norm_groups", "1 for this model", given)
        return call(*args, **kwargs)

    token = _groups.set(count)
    try:
        with nn.intercept_methods(refuse) if count > 1 else contextlib.nullcontext():
            yield
    finally:
        _groups.reset(token)


class BatchNorm(nn.Module):
    """``nn.BatchNorm`` with the same parameters and statistics, and faster; Keras' momentum.

    See `batch_norm_groups` for statistics of parts of a batch.

    Attributes:
        use_running_average: Whether to use the running statistics instead of the batch's.
        momentum: Share of the old running statistics in the new ones.
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
            mean, factor, bias = (each[None, None, None] for each in (means.value, factor, bias))
            return ((x.astype(jnp.float32) - mean) * factor + bias).astype(self.dtype)
        groups = 1 if self.is_initializing() else _groups.get()
        if groups == 1:
            y, mean, variance = batch_norm(x, scale, bias, self.epsilon)
        else:
            of_part = jax.vmap(lambda part: batch_norm(part, scale, bias, self.epsilon))
            y, mean, variance = of_part(x.reshape(groups, -1, *x.shape[1:]))
            y, mean, variance = y.reshape(x.shape), mean.mean(0), variance.mean(0)
        if not self.is_initializing():
            for kept, new in ((means, mean), (variances, variance)):
                kept.value = self.momentum * kept.value + (1 - self.momentum) * new
        return y


class ConvBN(nn.Module):
    """A convolution ``conv``, batch norm ``bn`` and, with ``activate``, a ReLU.

    The scale, epsilon and momentum are batch norm's.
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
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Returns the activations."""
        x = Conv(
            self.features,
            self.kernel,
            strides=(self.stride, self.stride),
            padding=self.padding,
            feature_group_count=self.groups,
            use_bias=self.use_bias,
            promote_dtype=_constant_bias if train else promote_dtype,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = BatchNorm(
            use_running_average=not train,
            use_scale=self.use_scale,
            epsilon=self.epsilon,
            momentum=self.momentum,
            dtype=self.dtype,
            name="bn",
        )(x)
        return nn.relu(x) if self.activate else x


class ConvReluBN(nn.Module):
    """A convolution ``conv`` with bias, a ReLU ``relu``, then batch norm ``bn``.

    The order of the networks that Datta et al. 2021 and Köfler 2023 built by hand.
    """

    features: int
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: str = "SAME"
    kernel_init: Any = nn.initializers.glorot_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Returns the normalised activations."""
        x = Conv(
            self.features,
            self.kernel,
            strides=(self.stride, self.stride),
            padding=self.padding,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = Relu(name="relu")(x)
        return BatchNorm(use_running_average=not train, epsilon=1e-3, dtype=self.dtype, name="bn")(
            x
        )


class Relu(nn.Module):
    """A ReLU with a name, so that a network can be truncated after it."""

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Returns the positive part."""
        return nn.relu(x)


class Add(nn.Module):
    """The sum of a residual block's shortcut and branch, with a name to truncate a network at."""

    @nn.compact
    def __call__(
        self, shortcut: Float[Array, "B H W C"], x: Float[Array, "B H W D"]
    ) -> Float[Array, "B H W D"]:
        """Returns the sum.

        Raises:
            InputError: The channels differ, because attention before the block changed them.
        """
        if shortcut.shape != x.shape:
            raise invalid(
                "attention_at",
                f"attention that keeps the {x.shape[-1]} channels before a residual block, or "
                "another endpoint",
                f"{shortcut.shape[-1]} channels",
            )
        return shortcut + x
