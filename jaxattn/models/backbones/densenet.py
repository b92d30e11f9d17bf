"""DenseNet (Huang et al. 2017, arXiv:1608.06993).

Layer for layer as published: growth rate 32, bottlenecks of 128 channels, transitions that halve
the channels. Batch norm has epsilon 1.001e-5 and momentum 0.99 with ``framework="keras"``
(keras.applications), 1e-5 and, as Flax counts it, 0.9 with ``"torch"`` (torchvision). The attention
models of Gessert et al. 2019 end at ``bn``, without the ReLU before the pooling.

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

Parameters are named the same: ``conv5_block29/conv1/conv/kernel``. The network can be truncated
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

Licences: Keras Apache-2.0, torchvision BSD-3-Clause.
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
from jaxattn.models.backbones.base import BACKBONES, Backbone, Endpoints, Entry, classify
from jaxattn.models.backbones.resnet import keras_stem, stem
from jaxattn.models.layers import BatchNorm, Conv, ConvBN, Relu

GROWTH = 32
#: Epsilon and momentum of batch norm, by framework.
NORM: dict[str, dict[str, Any]] = {
    "keras": {"epsilon": 1.001e-5, "momentum": 0.99},
    "torch": {"epsilon": 1e-5, "momentum": 0.9},
}


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 1×1 bottleneck ``conv1``, 3×3 ``conv2``; appends 32 channels."""

    framework: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H W C+32"]:
        """Returns all channels, the old ones first."""
        norm = NORM[self.framework]
        y = BatchNorm(use_running_average=not train, **norm, dtype=self.dtype, name="bn")(x)
        y = Relu(name="relu")(y)
        y = ConvBN(4 * GROWTH, **norm, dtype=self.dtype, name="conv1")(y, train=train)
        y = Conv(GROWTH, (3, 3), use_bias=False, dtype=self.dtype, name="conv2")(y)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """Batch norm, ReLU, a 1×1 convolution to half the channels, 2×2 average pooling."""

    framework: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Returns half the channels at half the resolution."""
        norm = NORM[self.framework]
        x = BatchNorm(use_running_average=not train, **norm, dtype=self.dtype, name="bn")(x)
        x = Relu(name="relu")(x)
        x = Conv(x.shape[-1] // 2, (1, 1), use_bias=False, dtype=self.dtype, name="conv")(x)
        return nn.avg_pool(x, (2, 2), strides=(2, 2))


class DenseNet(Backbone):
    """The backbone, with or without its classifier; images normalised per channel (ImageNet).

    Attributes:
        blocks: Layers in each dense block; by default those of DenseNet-121.
        framework: ``keras`` or ``torch``.
    """

    blocks: tuple[int, ...] = (6, 12, 24, 16)
    framework: str = "keras"

    @nn.compact
    def forward(self, x: Array, train: bool, endpoint: Endpoints) -> None:
        """The endpoints of this module's docstring."""
        norm = NORM[self.framework]
        x = stem(x, train, endpoint, dtype=self.dtype, **norm)
        for i, layers in enumerate(self.blocks, 2):
            for j in range(1, layers + 1):
                name = f"conv{i}_block{j}"
                layer = DenseLayer(self.framework, self.dtype, name=name)
                x = endpoint(name, layer(x, train=train))
            if i <= len(self.blocks):
                transition = Transition(self.framework, self.dtype, name=f"pool{i}")
                x = endpoint(f"pool{i}", transition(x, train=train))
        bn = BatchNorm(use_running_average=not train, **norm, dtype=self.dtype, name="bn")
        x = endpoint("bn", bn(x))
        x = endpoint("relu", nn.relu(x))
        classify(x, self.num_classes, endpoint)


def _keras_layers(model: DenseNet) -> dict[str, keras_order.Stage]:
    stages = keras_stem()
    for i, count in enumerate(model.blocks, 2):
        for name in (f"conv{i}_block{j}" for j in range(1, count + 1)):
            stages[name] = functools.partial(_keras_dense_layer, block=name)
        if i <= len(model.blocks):
            stages[f"pool{i}"] = functools.partial(_keras_transition, block=f"pool{i}")
    stages["bn"] = keras_order.layer("batch_normalization", "bn", "bn")
    stages["relu"] = keras_order.layers("activation")
    return stages | keras_order.classifier(model.num_classes)


def _keras_dense_layer(net: Network, x: Layer, block: str) -> Layer:
    y = net("batch_normalization", x, path=f"{block}/bn", name=f"{block}_0_bn")
    y = net("activation", y, path=f"{block}/relu")
    y = keras_order.conv_bn_relu(net, y, f"{block}/conv1", f"{block}_1_conv", f"{block}_1_bn")
    y = net("conv2d", y, path=f"{block}/conv2", name=f"{block}_2_conv")
    return net("concatenate", x, y)


def _keras_transition(net: Network, x: Layer, block: str) -> Layer:
    x = net("batch_normalization", x, path=f"{block}/bn", name=f"{block}_bn")
    x = net("activation", x, path=f"{block}/relu")
    x = net("conv2d", x, path=f"{block}/conv", name=f"{block}_conv")
    return net("pooling", x)


def _torch_names(model: DenseNet) -> Callable[[str], str]:
    return _torch_name


def _torch_name(path: str) -> str:
    stage, *inside = path.split("/")
    simple = {"bn": "features.norm5", "logits": "classifier"}
    if stage in simple:
        return simple[stage]
    last = "/".join(inside)
    if stage == "conv1":
        return {"conv": "features.conv0", "bn": "features.norm0"}[last]
    if block := re.fullmatch(r"conv(\d)_block(\d+)", stage):
        layer = {"bn": "norm1", "conv1/conv": "conv1", "conv1/bn": "norm2", "conv2": "conv2"}[last]
        return f"features.denseblock{int(block[1]) - 1}.denselayer{block[2]}.{layer}"
    layer = {"bn": "norm", "conv": "conv"}[last]
    return f"features.transition{int(stage.removeprefix('pool')) - 1}.{layer}"


_keras = functools.partial(
    Entry, source="keras.applications", licence="Apache-2.0", keras_layers=_keras_layers
)
BACKBONES["keras_densenet121"] = _keras(DenseNet)
BACKBONES["keras_densenet169"] = _keras(functools.partial(DenseNet, blocks=(6, 12, 32, 32)))
BACKBONES["keras_densenet201"] = _keras(functools.partial(DenseNet, blocks=(6, 12, 48, 32)))

_torch_densenet = functools.partial(DenseNet, framework="torch")
BACKBONES["torch_densenet121"] = Entry(
    _torch_densenet, source="torchvision", licence="BSD-3-Clause", torch_names=_torch_names
)
#: Eight layers, for machines without a GPU.
BACKBONES["densenet_small"] = Entry(
    functools.partial(_torch_densenet, blocks=(2, 2, 2, 2)), image_size=112
)
