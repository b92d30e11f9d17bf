"""Inception-ResNet-v2 (Szegedy et al. 2016, arXiv:1602.07261).

Layer for layer as in keras.applications (licence Apache-2.0): batch norm without scale
(epsilon 1e-3, momentum 0.99), residual scales 0.17, 0.1 and 0.2, and a last block8 of scale 1
without activation.

Endpoints, in order, with their shapes for images of 299 × 299:

========================  =============  ========================================
``conv_1a``               149 149 32     stem; SAME padding only in ``conv_2b``
``conv_2a``, ``conv_2b``  147 147 32/64
``pool_3a``               73 73 64
``conv_3b``, ``conv_4a``  73/71 80/192
``pool_5a``               35 35 192
``mixed_5b``              35 35 320      Inception-A
``block35_1`` … ``_10``   35 35 320      Inception-ResNet-A
``mixed_6a``              17 17 1088     Reduction-A
``block17_1`` … ``_20``   17 17 1088     Inception-ResNet-B
``mixed_7a``              8 8 2080       Reduction-B
``block8_1`` … ``_10``    8 8 2080       Inception-ResNet-C
``conv_7b``               8 8 1536
``global_pool``           1536           only with classes
``logits``                classes        only with classes
========================  =============  ========================================

Parameters are named the same: ``block8_9/branch0/conv1/conv/kernel``. The network can be truncated
at any convolution inside an endpoint, ``block8_9/branch0/conv1``, before its ReLU, ``…/conv1/bn``,
or before its batch norm, ``…/conv1/conv``; nothing after or beside it is computed or has
parameters.
"""

from flax import linen as nn
from jaxtyping import Array

from jaxattn.convert import keras_order
from jaxattn.models.backbones import inception
from jaxattn.models.backbones.base import BACKBONES, Backbone, Endpoints, Entry, classify
from jaxattn.models.backbones.inception import (
    AVERAGE,
    HALVE,
    SQUARE,
    STEM,
    BlockSpec,
    ConvSpec,
    Spec,
)

_MIXED_5B = BlockSpec(
    (
        (ConvSpec(96),),
        (ConvSpec(48), ConvSpec(64, (5, 5))),
        (ConvSpec(64), ConvSpec(96, SQUARE), ConvSpec(96, SQUARE)),
        (AVERAGE, ConvSpec(64)),
    )
)
_BLOCK35 = BlockSpec(
    (
        (ConvSpec(32),),
        (ConvSpec(32), ConvSpec(32, SQUARE)),
        (ConvSpec(32), ConvSpec(48, SQUARE), ConvSpec(64, SQUARE)),
    ),
    scale=0.17,
)
_MIXED_6A = BlockSpec(
    (
        (ConvSpec(384, SQUARE, 2, "VALID"),),
        (ConvSpec(256), ConvSpec(256, SQUARE), ConvSpec(384, SQUARE, 2, "VALID")),
        (HALVE,),
    )
)
_BLOCK17 = BlockSpec(
    ((ConvSpec(192),), (ConvSpec(128), ConvSpec(160, (1, 7)), ConvSpec(192, (7, 1)))), scale=0.1
)
_MIXED_7A = BlockSpec(
    (
        (ConvSpec(256), ConvSpec(384, SQUARE, 2, "VALID")),
        (ConvSpec(256), ConvSpec(288, SQUARE, 2, "VALID")),
        (ConvSpec(256), ConvSpec(288, SQUARE), ConvSpec(320, SQUARE, 2, "VALID")),
        (HALVE,),
    )
)
_BLOCK8 = BlockSpec(
    ((ConvSpec(192),), (ConvSpec(192), ConvSpec(224, (1, 3)), ConvSpec(256, (3, 1)))), scale=0.2
)


def specs(repeats: tuple[int, int, int]) -> dict[str, Spec]:
    """The endpoints up to ``conv_7b``, in order, and what each is."""
    return {
        **STEM,
        "mixed_5b": _MIXED_5B,
        **{f"block35_{i}": _BLOCK35 for i in range(1, repeats[0] + 1)},
        "mixed_6a": _MIXED_6A,
        **{f"block17_{i}": _BLOCK17 for i in range(1, repeats[1] + 1)},
        "mixed_7a": _MIXED_7A,
        **{f"block8_{i}": _BLOCK8 for i in range(1, repeats[2])},
        f"block8_{repeats[2]}": _BLOCK8._replace(scale=1.0, activate=False),
        "conv_7b": ConvSpec(1536),
    }


class InceptionResNetV2(Backbone):
    """The backbone, with or without its classifier; images from -1 to 1, at least 75 × 75.

    Attributes:
        repeats: How many block35, block17 and block8 there are; the last block8 is the linear one.
    """

    repeats: tuple[int, int, int] = (10, 20, 10)

    @nn.compact
    def forward(self, x: Array, train: bool, endpoint: Endpoints) -> None:
        """The endpoints of this module's docstring."""
        x = inception.run(specs(self.repeats), x, train, endpoint, self.dtype)
        classify(x, self.num_classes, endpoint)


def _keras_layers(model: InceptionResNetV2) -> dict[str, keras_order.Stage]:
    layers = inception.keras_layers(specs(model.repeats))
    return layers | keras_order.classifier(model.num_classes)


BACKBONES["keras_inception_resnet_v2"] = Entry(
    InceptionResNetV2,
    image_size=299,
    normalisation="minus_one_one",
    source="keras.applications",
    licence="Apache-2.0",
    keras_layers=_keras_layers,
)
