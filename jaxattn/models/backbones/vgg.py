"""VGG (Simonyan and Zisserman 2015, arXiv:1409.1556), without and with batch norm.

``VGG`` is keras.applications' VGG-16 and VGG-19 (Apache-2.0), without batch norm and dropout;
``VGGBN`` torchvision's with batch norm (BSD-3-Clause; epsilon 1e-5 and, as Flax counts it, momentum
0.9) and dropout. Endpoints, in order, with their shapes for VGG-16 and images of 224 × 224:

====================================  ==========================  ============  ==================
``VGG``                               ``VGGBN``
``block1_conv1``, ``block1_conv2``    ``conv1_1``, ``conv1_2``    224 224 64    3×3, ReLU
``block1_pool``                       ``pool1``                   112 112 64
``block2_conv1``, ``block2_conv2``    ``conv2_1``, ``conv2_2``    112 112 128
``block2_pool``                       ``pool2``                   56 56 128
``block3_conv1`` … ``block3_conv3``   ``conv3_1`` … ``_3``        56 56 256
``block3_pool``                       ``pool3``                   28 28 256
``block4_conv1`` … ``block4_conv3``   ``conv4_1`` … ``_3``        28 28 512
``block4_pool``                       ``pool4``                   14 14 512
``block5_conv1`` … ``block5_conv3``   ``conv5_1`` … ``_3``        14 14 512
``block5_pool``                       ``pool5``                   7 7 512
``flatten``                           the same                    25088         only with classes
``fc1``, ``fc2``                      the same                    4096          ReLU
``logits``                            the same                    classes
====================================  ==========================  ============  ==================

Parameters are named the same: ``block5_conv3/kernel``; ``conv5_3/conv/kernel``, ``…/bn/scale``.
``VGGBN`` flattens channels first, as PyTorch does, so that its weights fit with a transposition.
"""

import functools
from collections.abc import Callable

from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.convert import keras_order
from jaxattn.models.backbones.base import (
    BACKBONES,
    Backbone,
    Endpoints,
    Entry,
    dense,
    flatten,
    max_pool,
)
from jaxattn.models.layers import HE_FAN_OUT, Conv, ConvBN

#: Convolutions in each of the five blocks, and their channels.
VGG16, VGG19 = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)
FEATURES = (64, 128, 256, 512, 512)
_HIDDEN = 4096


class VGG(Backbone):
    """Without batch norm, as in Keras; images are BGR minus ImageNet's means (``caffe``).

    Attributes:
        blocks: Convolutions in each block; by default those of VGG-16.
    """

    blocks: tuple[int, ...] = VGG16

    @nn.compact
    def forward(self, x: Array, train: bool, endpoint: Endpoints) -> None:
        """The endpoints of this module's docstring."""
        for i, (convs, features) in enumerate(zip(self.blocks, FEATURES, strict=True), 1):
            for name in (f"block{i}_conv{j}" for j in range(1, convs + 1)):
                conv = Conv(features, (3, 3), dtype=self.dtype, name=name)
                x = endpoint(name, nn.relu(conv(x)))
            x = endpoint(f"block{i}_pool", max_pool(x, 2, 2, "VALID"))
        if self.num_classes is not None:
            x = endpoint("flatten", flatten(x))
            x = endpoint("fc1", nn.relu(dense(x, "fc1", _HIDDEN, self.dtype)))
            x = endpoint("fc2", nn.relu(dense(x, "fc2", _HIDDEN, self.dtype)))
            endpoint("logits", dense(x, "logits", self.num_classes))


class VGGBN(Backbone):
    """With batch norm, as in torchvision, whose weights want ``imagenet`` images.

    Attributes:
        blocks: Convolutions in each block; by default those of VGG-16.
        width: Multiplies all numbers of channels.
        dropout_rate: Share of the activations dropped after each hidden dense layer.
    """

    blocks: tuple[int, ...] = VGG16
    width: float = 1.0
    dropout_rate: float = 0.5

    @nn.compact
    def forward(self, x: Array, train: bool, endpoint: Endpoints) -> None:
        """The endpoints of this module's docstring."""
        conv_bn = functools.partial(
            ConvBN,
            kernel=(3, 3),
            use_bias=True,
            epsilon=1e-5,
            momentum=0.9,
            kernel_init=HE_FAN_OUT,
            dtype=self.dtype,
        )
        for i, (convs, features) in enumerate(zip(self.blocks, FEATURES, strict=True), 1):
            for name in (f"conv{i}_{j}" for j in range(1, convs + 1)):
                x = endpoint(name, conv_bn(self._scaled(features), name=name)(x, train=train))
            x = endpoint(f"pool{i}", Pool(name=f"pool{i}")(x))
        if self.num_classes is not None:
            x = endpoint("flatten", x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1))
            init = nn.initializers.normal(0.01)
            for name in ("fc1", "fc2"):
                hidden = self._scaled(_HIDDEN)
                x = nn.Dense(hidden, kernel_init=init, dtype=self.dtype, name=name)(x)
                x = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(x))
                x = endpoint(name, x)
            endpoint("logits", nn.Dense(self.num_classes, kernel_init=init, name="logits")(x))

    def _scaled(self, features: int) -> int:
        return max(1, round(features * self.width))


class Pool(nn.Module):
    """2×2 max pooling. A module, so that Grad-CAM finds its output by name."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """Halves height and width; drops an odd last row or column."""
        return max_pool(x, 2, 2, "VALID")


def _keras_layers(model: VGG) -> dict[str, keras_order.Stage]:
    stages: dict[str, keras_order.Stage] = {}
    for i, count in enumerate(model.blocks, 1):
        for name in (f"block{i}_conv{j}" for j in range(1, count + 1)):
            stages[name] = keras_order.layer("conv2d", name, name)
        stages[f"block{i}_pool"] = keras_order.layers("pooling")
    stages["flatten"] = keras_order.layers("flatten")
    for name in ("fc1", "fc2"):
        stages[name] = keras_order.layer("dense", name, name)
    return stages | {"logits": keras_order.layer("dense", "logits", "predictions")}


def _torch_names(model: VGGBN) -> Callable[[str], str]:
    return functools.partial(_torch_name, blocks=model.blocks)


def _torch_name(path: str, blocks: tuple[int, ...]) -> str:
    dense = {"fc1": "classifier.0", "fc2": "classifier.3", "logits": "classifier.6"}
    if path in dense:
        return dense[path]
    stage, layer = path.split("/")
    block, place = map(int, stage.removeprefix("conv").split("_"))
    # Each convolution counts as three modules, each pool as one.
    index = 3 * (sum(blocks[: block - 1]) + place - 1) + block - 1
    return f"features.{index + (layer == 'bn')}"


_keras = functools.partial(
    Entry,
    normalisation="caffe",
    source="keras.applications",
    licence="Apache-2.0",
    keras_layers=_keras_layers,
)
BACKBONES["keras_vgg16"] = _keras(VGG)
BACKBONES["keras_vgg19"] = _keras(functools.partial(VGG, blocks=VGG19))
BACKBONES["torch_vgg16_bn"] = Entry(
    VGGBN, source="torchvision", licence="BSD-3-Clause", torch_names=_torch_names
)
