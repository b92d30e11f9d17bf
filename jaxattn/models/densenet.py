"""DenseNet (Huang et al. 2017, arXiv:1608.06993), as ``keras.applications`` has it.

Layer for layer: growth rate 32, bottlenecks of 128 channels, transitions that halve the channels,
batch norm with epsilon 1.001e-5 and momentum 0.99. As torchvision has it, with ``torch``, they are
1e-5 and, as Flax counts it, 0.9. Gessert et al. 2019 end their DenseNet at ``bn``, without the ReLU
before the pooling.

Endpoints, in order, with their shapes for DenseNet-201 and images of 224 × 224:

============================  ============  ======================================
``conv1``                     112 112 64    7×7, batch norm, ReLU
``pool1``                     56 56 64
``conv2_block1`` … ``_6``     56 56 256     each adds 32 channels
``pool2``                     28 28 128     transition
``conv3_block1`` … ``_12``    28 28 512
``pool3``                     14 14 256     transition
``conv4_block1`` … ``_48``    14 14 1792
``pool4``                     7 7 896       transition
``conv5_block1`` … ``_32``    7 7 1920
``bn``, ``relu``              7 7 1920
``global_pool``               1920          only with classes
``logits``                    classes       only with classes
============================  ============  ======================================

Parameters lie under the same names: ``conv5_block29/conv1/conv/kernel``. The network can also stop
inside an endpoint:

============================  ============  ======================================
``conv1/conv``, ``…/bn``      112 112 64    before batch norm, before its ReLU
``conv5_block29/bn``          7 7 1792      of all channels before the block
``conv5_block29/relu``        7 7 1792
``conv5_block29/conv1/conv``  7 7 128       the 1×1 bottleneck
``conv5_block29/conv1/bn``    7 7 128
``conv5_block29/conv1``       7 7 128       after its ReLU; Keras' ``conv5_block29_1_relu``
``conv5_block29/conv2``       7 7 32        the 3×3 convolution
``pool4/bn``, ``…/relu``      14 14 1792
``pool4/conv``                14 14 896     before the pooling
============================  ============  ======================================
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.models.backbone import Backbone, Stage, classifier, of_module
from jaxattn.models.layers import BatchNorm, Conv, ConvBN
from jaxattn.models.resnet import stem

#: Layers in each of the four dense blocks.
BLOCKS: dict[str, tuple[int, ...]] = {
    "densenet121": (6, 12, 24, 16),
    "densenet169": (6, 12, 32, 32),
    "densenet201": (6, 12, 48, 32),
}
GROWTH = 32
KERAS_NORM = {"epsilon": 1.001e-5, "momentum": 0.99}
TORCH_NORM = {"epsilon": 1e-5, "momentum": 0.9}


def _bn(module: Any, train: bool) -> nn.Module:
    return BatchNorm(use_running_average=not train, **module.norm, dtype=module.dtype, name="bn")


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 1×1 bottleneck ``conv1``, 3×3 ``conv2``: new channels after the old."""

    norm: Mapping[str, Any]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, stop: tuple[str, ...] = ()
    ) -> Float[Array, "B H W D"]:
        """Returns all channels, or what there is at ``stop``."""
        y = _bn(self, train)(x)
        if stop == ("bn",):
            return y
        y = nn.relu(y)
        if stop == ("relu",):
            return y
        y = ConvBN(4 * GROWTH, **self.norm, dtype=self.dtype, name="conv1")(
            y, train=train, stop=stop[1:]
        )
        if stop[:1] == ("conv1",):
            return y
        y = Conv(GROWTH, (3, 3), use_bias=False, dtype=self.dtype, name="conv2")(y)
        return y if stop == ("conv2",) else jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """Batch norm, ReLU, a 1×1 convolution to half the channels, 2×2 average pooling."""

    norm: Mapping[str, Any]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, stop: tuple[str, ...] = ()
    ) -> Float[Array, "B h w D"]:
        """Returns the pooled channels, or what there is at ``stop``."""
        x = _bn(self, train)(x)
        if stop == ("bn",):
            return x
        x = nn.relu(x)
        if stop == ("relu",):
            return x
        x = Conv(x.shape[-1] // 2, (1, 1), use_bias=False, dtype=self.dtype, name="conv")(x)
        return x if stop == ("conv",) else nn.avg_pool(x, (2, 2), strides=(2, 2))


class DenseNet(Backbone):
    """The backbone, with or without its classifier; images normalised per channel (ImageNet's).

    Attributes:
        blocks: Layers in each dense block; by default those of DenseNet-121, see ``BLOCKS``.
        torch: Whether batch norm is torchvision's.
    """

    blocks: tuple[int, ...] = BLOCKS["densenet121"]
    torch: bool = False

    @property
    def norm(self) -> Mapping[str, Any]:
        """Epsilon and momentum of batch norm."""
        return TORCH_NORM if self.torch else KERAS_NORM

    def stages(self) -> dict[str, Stage]:
        """The endpoints of this module's docstring."""
        stages = stem(**self.norm, dtype=self.dtype)
        for i, layers in enumerate(self.blocks, 2):
            for name in (f"conv{i}_block{j}" for j in range(1, layers + 1)):
                layer = functools.partial(DenseLayer, self.norm, self.dtype, name=name)
                stages[name] = of_module(
                    layer, ("bn", "relu", "conv1", "conv1/conv", "conv1/bn", "conv2")
                )
            if i <= len(self.blocks):
                transition = functools.partial(Transition, self.norm, self.dtype, name=f"pool{i}")
                stages[f"pool{i}"] = of_module(transition, ("bn", "relu", "conv"))
        stages["bn"] = Stage(self._norm)
        stages["relu"] = Stage(lambda x, train, stop: nn.relu(x))
        return stages | classifier(self.num_classes)

    def _norm(self, x: Array, train: bool, stop: tuple[str, ...]) -> Array:
        return _bn(self, train)(x)
