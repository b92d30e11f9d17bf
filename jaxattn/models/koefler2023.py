"""The CNN of Köfler 2023, and CNN-SA, the same with Soft-Attention after its fifth convolution.

Six convolutions with bias, ReLU and then batch norm, and two dense layers, for images of 100 × 100.
Endpoints, in order, with their shapes:

=================  ===========  =========================================
``conv1``          47 47 64     7×7, stride 2, VALID padding
``pool1``          23 23 64     3×3, stride 2, VALID
``conv2``          12 12 128    3×3, stride 2
``pool2``          10 10 128    3×3, stride 1, VALID, as the next ones
``conv3``          10 10 256    3×3
``pool3``          8 8 256
``conv4``          8 8 512      3×3
``conv5``          8 8 512      3×3
``pool5``          6 6 512
``conv6``          6 6 512      3×3
``pool6``          4 4 512
``flatten``        8192         only with classes
``fc1``, ``fc2``   4096         only with classes; ReLU, dropout
``logits``         classes      only with classes
=================  ===========  =========================================

In CNN-SA the released Soft-Attention layer, with 12 maps, follows ``conv5``; features and attended
features stand side by side, and ``pool5`` and a ReLU act on both.
"""

import functools
from typing import Any

from flax import linen as nn
from jaxtyping import Array

from jaxattn.convert import keras_order
from jaxattn.models.backbones.base import (
    Backbone,
    Endpoints,
    Entry,
    dense,
    endpoint_names,
    flatten,
    max_pool,
)
from jaxattn.models.classifier import Classifier
from jaxattn.models.layers import ConvReluBN
from jaxattn.models.registry import MODELS, Model

#: Window, stride and padding of ``pool5``, and of CNN-SA's attention block in its place.
POOL5 = (3, 1, "VALID")


class KoeflerCNN(Backbone):
    """The backbone, with or without its classifier; images of bytes, at least 75 × 75.

    Attributes:
        dropout_rate: Share of the activations dropped after each of ``fc1`` and ``fc2``.
    """

    dropout_rate: float = 0.5

    @nn.compact
    def forward(self, x: Array, train: bool, endpoint: Endpoints) -> None:
        """The endpoints of this module's docstring."""

        def conv(
            x: Array,
            name: str,
            features: int,
            size: int = 3,
            stride: int = 1,
            pads: str = "SAME",
        ) -> Array:
            layer = ConvReluBN(features, (size, size), stride, pads, dtype=self.dtype, name=name)
            return endpoint(name, layer(x, train=train))

        x = conv(x, "conv1", 64, 7, 2, "VALID")
        x = endpoint("pool1", max_pool(x, 3, 2, "VALID"))
        x = conv(x, "conv2", 128, stride=2)
        x = endpoint("pool2", max_pool(x, 3, 1, "VALID"))
        x = conv(x, "conv3", 256)
        x = endpoint("pool3", max_pool(x, 3, 1, "VALID"))
        x = conv(x, "conv4", 512)
        x = conv(x, "conv5", 512)
        x = endpoint("pool5", max_pool(x, *POOL5))
        x = conv(x, "conv6", 512)
        x = endpoint("pool6", max_pool(x, 3, 1, "VALID"))
        if self.num_classes is not None:
            x = endpoint("flatten", flatten(x))
            for name in ("fc1", "fc2"):
                x = nn.relu(dense(x, name, 4096, self.dtype))
                x = endpoint(name, nn.Dropout(self.dropout_rate, deterministic=not train)(x))
            endpoint("logits", dense(x, "logits", self.num_classes))


def keras_layers(model: Backbone) -> dict[str, keras_order.Stage]:
    """The layers in Keras of a network of convolutions, pools and dense layers, by endpoint."""

    def stage(name: str) -> keras_order.Stage:
        if "pool" in name or name == "flatten":
            return keras_order.layers("pooling")
        if "conv" in name:
            return functools.partial(keras_order.conv_bn, path=name)
        return keras_order.layer("dense", name)

    return {name: stage(name) for name in endpoint_names(model)}


_CNN = Entry(KoeflerCNN, 100, "bgr_255", source="Köfler 2023", keras_layers=keras_layers)
_ATTENTION = {"heads": 12, "pool": POOL5, "dropout_rate": 0.0}
for _name, _attention in (
    ("koefler_cnn", ""),
    ("koefler_cnn_sa", "soft_block"),
    ("koefler_cnn_sa_paper", "soft_paper_block"),
):
    _fixed: dict[str, Any] = {"backbone": _CNN}
    if _attention:
        _fixed |= {
            "attention": _attention,
            "attention_at": "conv5",
            "attention_options": _ATTENTION,
            "skip": ("pool5",),
        }
    MODELS[_name] = Model(Classifier, 100, _fixed, normalisation="bgr_255")
