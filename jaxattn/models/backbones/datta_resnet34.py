"""The ResNet-34 that Datta et al. 2021 (arXiv:2105.03358) built by hand.

It differs from He et al.'s (arXiv:1512.03385): every convolution is 3×3 with a bias, and batch norm
follows its ReLU; max pooling takes the place of strides; and from the third stage on, every unit's
shortcut is a 3×3 convolution. Kernels start from Glorot's uniform distribution; nothing was
pre-trained.

Endpoints, in order, with their shapes for images of 224 × 224, without and with the attention block
after ``conv3_block4`` (section 3.3.3), which halves the resolution from there on. The authors'
baseline has no pool in its place.

===========================  ============  ============  =================
``conv1``                    112 112 64                  3×3, stride 2
``pool1``                    56 56 64                    3×3, stride 2
``conv2_block1`` … ``_3``    56 56 64
``pool2``                    28 28 64                    2×2, stride 2
``conv3_block1`` … ``_4``    28 28 128     14 14 256     with attention
``conv4_block1`` … ``_6``    28 28 256     14 14 256
``pool4``                    14 14 256     7 7 256       2×2, stride 2
``conv5_block1`` … ``_3``    14 14 512     7 7 512
``global_pool``              512           512           only with classes
``logits``                   classes       classes       only with classes
===========================  ============  ============  =================
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.convert import keras_order
from jaxattn.convert.keras_order import Layer, Network
from jaxattn.models.backbones.base import (
    Backbone,
    Endpoints,
    classify,
    endpoint_names,
    max_pool,
)
from jaxattn.models.layers import Add, ConvReluBN


class Unit(nn.Module):
    """Two convolutions, added to the input or to a convolution of it; ReLU.

    Attributes:
        features: Channels of the convolutions.
        project: Whether the shortcut is a convolution.
        dtype: Type of the activations.
    """

    features: int
    project: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool
    ) -> Float[Array, "B H W {self.features}"]:
        """Applies the unit; batch norm is of this batch where ``train``."""
        conv = functools.partial(ConvReluBN, self.features, dtype=self.dtype)
        shortcut = conv(name="shortcut")(x, train=train) if self.project else x
        x = conv(name="conv1")(x, train=train)
        x = conv(name="conv2")(x, train=train)
        return nn.relu(Add(name="add")(shortcut, x))


class DattaResNet34(Backbone):
    """The backbone, with or without its classifier; images from -1 to 1.

    Attributes:
        blocks: Units of each width.
    """

    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)

    @nn.compact
    def forward(self, x: Array, train: bool, endpoint: Endpoints) -> None:
        """The endpoints of this module's docstring."""
        conv1 = ConvReluBN(64, stride=2, dtype=self.dtype, name="conv1")
        x = endpoint("conv1", conv1(x, train=train))
        x = endpoint("pool1", max_pool(x, 3, 2))
        for i, count in enumerate(self.blocks, 2):
            for j in range(1, count + 1):
                name = f"conv{i}_block{j}"
                unit = Unit(64 * 2 ** (i - 2), i > 2, self.dtype, name=name)
                x = endpoint(name, unit(x, train=train))
            if i in (2, 4):
                x = endpoint(f"pool{i}", max_pool(x, 2, 2))
        classify(x, self.num_classes, endpoint)


def keras_layers(model: DattaResNet34) -> dict[str, keras_order.Stage]:
    """The layers in Keras, by endpoint."""

    def unit(net: Network, x: Layer, path: str, project: bool) -> Layer:
        y = keras_order.conv_bn(net, x, f"{path}/conv1")
        y = keras_order.conv_bn(net, y, f"{path}/conv2")
        shortcut = keras_order.conv_bn(net, x, f"{path}/shortcut") if project else x
        return net("activation", net("add", y, shortcut))

    stages: dict[str, keras_order.Stage] = {}
    for name in endpoint_names(model):
        if "block" in name:
            project = not name.startswith("conv2")
            stages[name] = functools.partial(unit, path=name, project=project)
        elif "conv" in name:
            stages[name] = functools.partial(keras_order.conv_bn, path=name)
        else:
            last = name == "logits"
            stages[name] = (
                keras_order.layer("dense", name) if last else keras_order.layers("pooling")
            )
    return stages
