"""ResNet (He et al. 2016, arXiv:1512.03385) with bottlenecks, as ``keras.applications`` has it.

Layer for layer: convolutions have a bias, a block's stride is in its first 1×1 convolution, batch
norm has epsilon 1.001e-5 and momentum 0.99.

Endpoints, in order, with their shapes for ResNet-50 and images of 224 × 224:

===========================  ============  =======================================
``conv1``                    112 112 64    7×7, batch norm, ReLU
``pool1``                    56 56 64
``conv2_block1`` … ``_3``    56 56 256
``conv3_block1`` … ``_4``    28 28 512
``conv4_block1`` … ``_6``    14 14 1024
``conv5_block1`` … ``_3``    7 7 2048
``global_pool``              2048          only with classes
``logits``                   classes       only with classes
===========================  ============  =======================================

Parameters lie under the same names: ``conv5_block3/conv1/conv/kernel``. The network can also stop
inside an endpoint, in a block's branch of three convolutions or in the shortcut, which is a
convolution in the first block of each resolution:

===========================  ============  =======================================
``conv1/conv``, ``…/bn``     112 112 64    before batch norm, before its ReLU
``…/shortcut/bn``            7 7 2048      also ``…/conv``; in first blocks only
``conv5_block3/conv1``       7 7 512       1×1; also ``…/conv`` and ``…/bn``
``conv5_block3/conv2``       7 7 512       3×3; also ``…/conv`` and ``…/bn``
``conv5_block3/conv3/bn``    7 7 2048      1×1, without a ReLU; also ``…/conv``
``conv5_block3/add``         7 7 2048      the sum, before its ReLU
===========================  ============  =======================================
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.models.backbone import Backbone, Stage, classifier, of_module
from jaxattn.models.layers import ConvBN, residual
from jaxattn.ops.pool import max_pool

#: Blocks at each of the four resolutions.
BLOCKS: dict[str, tuple[int, ...]] = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
EPSILON = 1.001e-5

#: Places in a block at which the network can stop.
_SHORTCUT = ("shortcut/conv", "shortcut/bn")
_INSIDE = (
    *("conv1", "conv1/conv", "conv1/bn"),
    *("conv2", "conv2/conv", "conv2/bn"),
    *("conv3/conv", "conv3/bn"),
    "add",
)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions with batch norm, added to their input; ReLU.

    Attributes:
        features: Channels between the convolutions; four times as many leave the block.
        stride: Of the first convolution and of the shortcut.
        project: Whether the shortcut is a convolution.
        dtype: Type of the activations.
    """

    features: int
    stride: int = 1
    project: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, stop: tuple[str, ...] = ()
    ) -> Float[Array, "B h w D"]:
        """Returns the block's output, or what there is at ``stop``."""
        conv_bn = functools.partial(ConvBN, use_bias=True, epsilon=EPSILON, dtype=self.dtype)
        widen = functools.partial(conv_bn, 4 * self.features, activate=False)
        if self.project and stop[:1] in ((), ("add",), ("shortcut",)):
            shortcut = widen(stride=self.stride, name="shortcut")(x, train=train, stop=stop[1:])
            if stop[:1] == ("shortcut",):
                return shortcut
        else:
            shortcut = x
        branch = (
            conv_bn(self.features, stride=self.stride, name="conv1"),
            conv_bn(self.features, (3, 3), name="conv2"),
            widen(name="conv3"),
        )
        for conv in branch:
            inner = stop[1:] if stop[:1] == (conv.name,) else ()
            x = conv(x, train=train, stop=inner)
            if stop[:1] == (conv.name,):
                return x
        x = residual(shortcut, x)
        return x if stop == ("add",) else nn.relu(x)


def stem(**options: Any) -> dict[str, Stage]:
    """``conv1``, 7×7 and of these options of ``ConvBN``, and ``pool1``; each halves the size."""

    def pool(x: Array, train: bool, stop: tuple[str, ...]) -> Array:
        # Keras pads with zeros, max_pool with -inf: after a ReLU the maxima are the same.
        return max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    padding = ((3, 3), (3, 3))
    conv1 = functools.partial(ConvBN, 64, (7, 7), 2, padding, name="conv1", **options)
    return {"conv1": of_module(conv1, ("conv", "bn")), "pool1": Stage(pool)}


class ResNet(Backbone):
    """The backbone, with or without its classifier; images as Caffe has them: BGR, minus means.

    Attributes:
        blocks: Blocks at each resolution; by default those of ResNet-50, see ``BLOCKS``.
    """

    blocks: tuple[int, ...] = BLOCKS["resnet50"]

    def stages(self) -> dict[str, Stage]:
        """The endpoints of this module's docstring."""
        stages = stem(use_bias=True, epsilon=EPSILON, dtype=self.dtype)
        for i, count in enumerate(self.blocks, 2):
            for j in range(1, count + 1):
                name = f"conv{i}_block{j}"
                project = j == 1
                block = functools.partial(
                    Bottleneck,
                    features=64 * 2 ** (i - 2),
                    stride=2 if project and i > 2 else 1,
                    project=project,
                    dtype=self.dtype,
                    name=name,
                )
                stages[name] = of_module(block, _SHORTCUT * project + _INSIDE)
        return stages | classifier(self.num_classes)
