"""ResNet (He et al. 2016) and SE-ResNeXt (Xie et al. 2017, Hu et al. 2018), as PyTorch has them.

Layer for layer those of torchvision (ResNet-34 and -50) and of timm and pretrainedmodels
(SE-ResNeXt-50 32×4d): convolutions have no bias, a block's stride is in its 3×3 convolution (the
first of two), batch norm has epsilon 1e-5 and, as Flax counts it, momentum 0.9.

Endpoints, in order, with their shapes for SE-ResNeXt-50 and images of 224 × 224:

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

Parameters lie under the same names: ``conv5_block3/conv1/conv/kernel``, and those of squeeze and
excitation under ``conv5_block3/se/fc1``. The network can also stop inside an endpoint, at
``conv1/conv`` and ``conv1/bn`` or, in a block, at ``conv1`` and ``conv2``.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.models.backbone import Backbone, Stage, classifier, of_module
from jaxattn.models.layers import ConvBN, residual
from jaxattn.models.resnet import stem
from jaxattn.models.vgg_bn import HE_FAN_OUT
from jaxattn.ops.pool import max_pool

#: Blocks at each of the four resolutions.
BLOCKS: dict[str, tuple[int, ...]] = {
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "se_resnext50": (3, 4, 6, 3),
}
_OPTIONS: dict[str, Any] = {"epsilon": 1e-5, "momentum": 0.9, "kernel_init": HE_FAN_OUT}
_REDUCTION = 16


class SqueezeExcite(nn.Module):
    """Scales each channel by what all channels' means say (Hu et al. 2018, equations 2 to 4)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Returns the scaled features."""
        means = x.astype(jnp.float32).mean((1, 2)).astype(self.dtype)
        hidden = nn.relu(nn.Dense(x.shape[-1] // _REDUCTION, dtype=self.dtype, name="fc1")(means))
        scale = nn.sigmoid(nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(hidden))
        return x * scale[:, None, None]


class Block(nn.Module):
    """Two 3×3 convolutions, or 1×1, 3×3 and 1×1 ones, added to their input; ReLU.

    Attributes:
        features: Channels that leave the block.
        inner: Channels of the first convolutions.
        bottleneck: Whether there are three.
        groups: Of the 3×3 convolution of three.
        squeeze: Whether the branch ends in ``SqueezeExcite``.
        stride: Of the block.
        project: Whether the shortcut is a convolution.
        dtype: Type of the activations.
    """

    features: int
    inner: int
    bottleneck: bool = True
    groups: int = 1
    squeeze: bool = False
    stride: int = 1
    project: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, stop: tuple[str, ...] = ()
    ) -> Float[Array, "B h w D"]:
        """Returns the block's output, or what there is at ``stop``."""
        conv = functools.partial(ConvBN, dtype=self.dtype, **_OPTIONS)
        around = ((1, 1), (1, 1))  # zeros on both sides, also where the stride is 2
        middle = functools.partial(conv, kernel=(3, 3), stride=self.stride, padding=around)
        last = functools.partial(conv, features=self.features, activate=False)
        branch: tuple[ConvBN, ...]
        if self.bottleneck:
            branch = (
                conv(features=self.inner, name="conv1"),
                middle(features=self.inner, groups=self.groups, name="conv2"),
                last(name="conv3"),
            )
        else:
            branch = (
                middle(features=self.inner, name="conv1"),
                last(kernel=(3, 3), name="conv2"),
            )
        y = x
        for layer in branch:
            y = layer(y, train=train)
            if stop == (layer.name,):
                return y
        if self.squeeze:
            y = SqueezeExcite(self.dtype, name="se")(y)
        shortcut = last(stride=self.stride, name="shortcut")(x, train=train) if self.project else x
        return nn.relu(residual(shortcut, y))


class TorchResNet(Backbone):
    """The backbone, with or without its classifier; images normalised per channel (ImageNet's).

    Attributes:
        blocks: Blocks at each resolution.
        bottleneck: See ``Block``.
        groups: See ``Block``.
        group_width: Channels of each group at the first resolution.
        squeeze: See ``Block``.
        ceil_pool: Whether ``pool1`` pads below and right alone, as pretrainedmodels' SE networks
            do, not on all sides.
    """

    blocks: tuple[int, ...] = BLOCKS["resnet50"]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64
    squeeze: bool = False
    ceil_pool: bool = False

    def stages(self) -> dict[str, Stage]:
        """The endpoints of this module's docstring."""
        stages = stem(dtype=self.dtype, **_OPTIONS)
        if self.ceil_pool:
            stages["pool1"] = Stage(_ceil_pool)
        channels = 64
        for i, count in enumerate(self.blocks):
            features = (256 if self.bottleneck else 64) * 2**i
            for j in range(count):
                name = f"conv{i + 2}_block{j + 1}"
                block = functools.partial(
                    Block,
                    features,
                    self.groups * self.group_width * 2**i,
                    bottleneck=self.bottleneck,
                    groups=self.groups,
                    squeeze=self.squeeze,
                    stride=2 if i and not j else 1,
                    project=not j and channels != features,
                    dtype=self.dtype,
                    name=name,
                )
                stages[name] = of_module(
                    block, ("conv1", "conv2") if self.bottleneck else ("conv1",)
                )
            channels = features
        return stages | classifier(self.num_classes)


def _ceil_pool(x: Array, train: bool, stop: tuple[str, ...]) -> Array:
    padding = [(0, side % 2 == 0) for side in x.shape[1:3]]
    return max_pool(x, (3, 3), (2, 2), padding)


resnet34 = functools.partial(TorchResNet, blocks=BLOCKS["resnet34"], bottleneck=False)
resnet50 = functools.partial(TorchResNet, blocks=BLOCKS["resnet50"])
#: timm's; pretrainedmodels', which Gessert et al. 2019 took, has ``ceil_pool``.
se_resnext50 = functools.partial(
    TorchResNet, blocks=BLOCKS["se_resnext50"], groups=32, group_width=4, squeeze=True
)
