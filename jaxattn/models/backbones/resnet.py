"""ResNet (He et al. 2016, arXiv:1512.03385) and SE-ResNeXt (Xie et al. 2017, Hu et al. 2018).

Layer for layer as published, which differs by framework:

=================  ============================================  ===============================
                   ``framework="keras"``                         ``framework="torch"``
=================  ============================================  ===============================
networks           keras.applications' ResNet-50, -101, -152     torchvision's ResNet-34, -50;
                                                                 SE-ResNeXt-50 32×4d of timm and
                                                                 pretrainedmodels
convolutions       with bias                                     without
a block's stride   in its first 1×1 convolution                  in its first 3×3 convolution
batch norm         epsilon 1.001e-5, momentum 0.99               1e-5 and, as Flax counts it, 0.9
images             BGR minus ImageNet's means (``caffe``)        normalised per channel
=================  ============================================  ===============================

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

Parameters are named the same: ``conv5_block3/conv1/conv/kernel``. The network can be truncated at
any module inside an endpoint: ``conv1/bn`` (before its ReLU), ``conv5_block3/conv2``,
``conv5_block1/shortcut/bn``, ``conv5_block3/add`` (before its ReLU).

Licences: Keras and timm Apache-2.0, torchvision and pretrainedmodels BSD-3-Clause.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.convert import keras_order
from jaxattn.convert.keras_order import Layer, Network
from jaxattn.models.attention.se import SqueezeExcite
from jaxattn.models.backbones.base import BACKBONES, Backbone, Endpoints, Entry, classify
from jaxattn.models.layers import HE_FAN_OUT, Add, ConvBN
from jaxattn.ops import pool
from jaxattn.ops.relu import residual_relu

#: Options of convolutions with batch norm, by framework.
CONV_BN: dict[str, dict[str, Any]] = {
    "keras": {"use_bias": True, "epsilon": 1.001e-5},
    "torch": {"epsilon": 1e-5, "momentum": 0.9, "kernel_init": HE_FAN_OUT},
}
_AROUND = ((1, 1), (1, 1))  # zeros on both sides, also with stride 2


class Block(nn.Module):
    """Two 3×3 convolutions, or 1×1, 3×3 and 1×1 ones, added to their input; ReLU.

    Attributes:
        features: Channels of the output.
        inner: Channels of the first convolutions.
        framework: ``keras`` or ``torch``.
        bottleneck: Whether there are three convolutions.
        groups: Of the 3×3 convolution of three.
        squeeze: Whether squeeze-and-excitation follows the convolutions.
        stride: Of the block.
        project: Whether the shortcut is a convolution.
        dtype: Type of the activations.
    """

    features: int
    inner: int
    framework: str = "torch"
    bottleneck: bool = True
    groups: int = 1
    squeeze: bool = False
    stride: int = 1
    project: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool
    ) -> Float[Array, "B h w {self.features}"]:
        """Applies the block; batch norm is of this batch where ``train``."""
        conv = functools.partial(ConvBN, dtype=self.dtype, **CONV_BN[self.framework])
        last = functools.partial(conv, features=self.features, activate=False)
        # Keras strides in the first convolution, PyTorch in the first 3×3 one.
        first, middle = (self.stride, 1) if self.framework == "keras" else (1, self.stride)
        shortcut = x
        if self.project:
            shortcut = last(stride=self.stride, name="shortcut")(x, train=train)
        around = functools.partial(
            conv, features=self.inner, kernel=(3, 3), stride=middle, padding=_AROUND
        )
        if self.bottleneck:
            x = conv(features=self.inner, stride=first, name="conv1")(x, train=train)
            x = around(groups=self.groups, name="conv2")(x, train=train)
            x = last(name="conv3")(x, train=train)
        else:
            x = around(name="conv1")(x, train=train)
            x = last(kernel=(3, 3), name="conv2")(x, train=train)
        if self.squeeze:
            x, _ = SqueezeExcite(dtype=self.dtype, name="se")(x, train=train)
        return residual_relu(Add(name="add")(shortcut, x))


def stem(
    x: Array, train: bool, endpoint: Endpoints, *, ceil_pool: bool = False, **options: Any
) -> Array:
    """``conv1``, 7×7 with these options of ``ConvBN``, and ``pool1``; each halves the size."""
    conv1 = ConvBN(64, (7, 7), 2, ((3, 3), (3, 3)), name="conv1", **options)
    x = endpoint("conv1", conv1(x, train=train))
    # Keras pads with zeros, max_pool with -inf: after a ReLU the maxima are the same.
    padding = [(0, side % 2 == 0) for side in x.shape[1:3]] if ceil_pool else _AROUND
    return endpoint("pool1", pool.max_pool(x, (3, 3), (2, 2), padding))


class ResNet(Backbone):
    """The backbone, with or without its classifier.

    Attributes:
        blocks: Blocks at each resolution.
        framework: ``keras`` or ``torch``.
        bottleneck: See ``Block``.
        groups: See ``Block``.
        group_width: Channels of each group at the first resolution.
        squeeze: See ``Block``.
        ceil_pool: Whether ``pool1`` pads below and right only, like pretrainedmodels' SE networks.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    framework: str = "keras"
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64
    squeeze: bool = False
    ceil_pool: bool = False

    @nn.compact
    def forward(self, x: Array, train: bool, endpoint: Endpoints) -> None:
        """The endpoints of this module's docstring."""
        options = {"dtype": self.dtype, **CONV_BN[self.framework]}
        x = stem(x, train, endpoint, ceil_pool=self.ceil_pool, **options)
        for i, count in enumerate(self.blocks):
            features = (256 if self.bottleneck else 64) * 2**i
            for j in range(count):
                name = f"conv{i + 2}_block{j + 1}"
                block = Block(
                    features,
                    self.groups * self.group_width * 2**i,
                    self.framework,
                    self.bottleneck,
                    self.groups,
                    self.squeeze,
                    stride=2 if i and not j else 1,
                    project=not j and (i > 0 or self.bottleneck),
                    dtype=self.dtype,
                    name=name,
                )
                x = endpoint(name, block(x, train=train))
        classify(x, self.num_classes, endpoint)


def keras_stem() -> dict[str, keras_order.Stage]:
    """The layers of ``stem`` in Keras."""

    def conv1(net: Network, x: Layer) -> Layer:
        x = net("zero_padding2d", x)
        return keras_order.conv_bn_relu(net, x, "conv1", "conv1_conv", "conv1_bn")

    return {"conv1": conv1, "pool1": keras_order.layers("zero_padding2d", "pooling")}


def _keras_layers(model: ResNet) -> dict[str, keras_order.Stage]:
    stages = keras_stem()
    for i, count in enumerate(model.blocks, 2):
        for j in range(1, count + 1):
            name = f"conv{i}_block{j}"
            stages[name] = functools.partial(_keras_block, block=name, project=j == 1)
    return stages | keras_order.classifier(model.num_classes)


def _keras_block(net: Network, x: Layer, block: str, project: bool) -> Layer:
    shortcut = x
    if project:
        names = (f"{block}_0_conv", f"{block}_0_bn")
        shortcut = keras_order.conv_bn(net, x, f"{block}/shortcut", *names)
    for k in (1, 2, 3):
        names = (f"{block}_{k}_conv", f"{block}_{k}_bn")
        x = keras_order.conv_bn(
            net, x if k == 1 else net("activation", x), f"{block}/conv{k}", *names
        )
    return net("activation", net("add", shortcut, x))


def _torch_names(model: ResNet) -> Callable[[str], str]:
    return _torch_name


def _torch_name(path: str) -> str:
    if path == "logits":
        return "fc"
    stage, *inside = path.split("/")
    layer = {
        "conv": "conv1",
        "bn": "bn1",
        "shortcut/conv": "downsample.0",
        "shortcut/bn": "downsample.1",
    }.get("/".join(inside)) or ".".join(inside)
    if inner := re.fullmatch(r"conv(\d)/(conv|bn)", "/".join(inside)):
        layer = f"{inner[2]}{inner[1]}"
    if block := re.fullmatch(r"conv(\d)_block(\d+)", stage):
        return f"layer{int(block[1]) - 1}.{int(block[2]) - 1}.{layer}"
    return layer


_keras = functools.partial(
    Entry,
    normalisation="caffe",
    source="keras.applications",
    licence="Apache-2.0",
    keras_layers=_keras_layers,
)
BACKBONES["keras_resnet50"] = _keras(ResNet)
BACKBONES["keras_resnet101"] = _keras(functools.partial(ResNet, blocks=(3, 4, 23, 3)))
BACKBONES["keras_resnet152"] = _keras(functools.partial(ResNet, blocks=(3, 8, 36, 3)))

_torch = functools.partial(Entry, torch_names=_torch_names)
_torch_resnet = functools.partial(ResNet, framework="torch")
_se_resnext50 = functools.partial(_torch_resnet, groups=32, group_width=4, squeeze=True)
BACKBONES["torch_resnet34"] = _torch(
    functools.partial(_torch_resnet, bottleneck=False), source="torchvision", licence="BSD-3-Clause"
)
BACKBONES["torch_resnet50"] = _torch(_torch_resnet, source="torchvision", licence="BSD-3-Clause")
BACKBONES["torch_se_resnext50"] = _torch(_se_resnext50, source="timm", licence="Apache-2.0")
#: The one that Gessert et al. 2019 used.
BACKBONES["torch_se_resnext50_cadene"] = _torch(
    functools.partial(_se_resnext50, ceil_pool=True),
    source="pretrainedmodels",
    licence="BSD-3-Clause",
)
