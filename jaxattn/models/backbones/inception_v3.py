"""Inception-v3 (Szegedy et al. 2016, arXiv:1512.00567).

Layer for layer as published. ``framework="keras"`` (keras.applications, Apache-2.0): convolutions
without bias, batch norm without scale (epsilon 1e-3, momentum 0.99), average pools that leave the
padding out, no auxiliary classifier. ``framework="torch"`` (torchvision, BSD-3-Clause): batch norm
with scale and, as Flax counts it, momentum 0.9; average pools that count the padding.

Endpoints, in order, with their shapes for images of 299 × 299:

===========================  =============  =====================================
``conv_1a``                  149 149 32     stem; SAME padding only in ``conv_2b``
``conv_2a``, ``conv_2b``     147 147 32/64
``pool_3a``                  73 73 64
``conv_3b``, ``conv_4a``     73/71 80/192
``pool_5a``                  35 35 192
``mixed0``                   35 35 256
``mixed1``, ``mixed2``       35 35 288
``mixed3`` … ``mixed7``      17 17 768      ``mixed3`` halves the size
``mixed8``                   8 8 1280       halves the size
``mixed9``, ``mixed10``      8 8 2048
``global_pool``              2048           only with classes
``logits``                   classes        only with classes
===========================  =============  =====================================

Parameters are named the same: ``mixed4/branch1/conv2/conv/kernel``. Branches are numbered in the
order of concatenation. Branches 1 and 2 of ``mixed9`` and ``mixed10`` end in two branches:
``mixed9/branch1/split/branch0/conv1/conv/kernel``. The network can be truncated at any convolution,
pool or split inside an endpoint, ``mixed4/branch1/conv2``, before a convolution's ReLU,
``…/conv2/bn``, or before its batch norm, ``…/conv2/conv``.
"""

import functools
from collections.abc import Callable, Mapping

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

_ROW, _COLUMN = (1, 7), (7, 1)


def _mixed_35(pooled: int) -> BlockSpec:
    """Figure 5 of the paper, with a 5×5 convolution where the figure has two of 3×3."""
    return BlockSpec(
        (
            (ConvSpec(64),),
            (ConvSpec(48), ConvSpec(64, (5, 5))),
            (ConvSpec(64), ConvSpec(96, SQUARE), ConvSpec(96, SQUARE)),
            (AVERAGE, ConvSpec(pooled)),
        )
    )


def _mixed_17(narrow: int) -> BlockSpec:
    """Figure 6, of this many channels inside the branches."""
    return BlockSpec(
        (
            (ConvSpec(192),),
            (ConvSpec(narrow), ConvSpec(narrow, _ROW), ConvSpec(192, _COLUMN)),
            (
                ConvSpec(narrow),
                ConvSpec(narrow, _COLUMN),
                ConvSpec(narrow, _ROW),
                ConvSpec(narrow, _COLUMN),
                ConvSpec(192, _ROW),
            ),
            (AVERAGE, ConvSpec(192)),
        )
    )


_SPLIT = BlockSpec(((ConvSpec(384, (1, 3)),), (ConvSpec(384, (3, 1)),)))

#: Figure 7.
_MIXED_8 = BlockSpec(
    (
        (ConvSpec(320),),
        (ConvSpec(384), _SPLIT),
        (ConvSpec(448), ConvSpec(384, SQUARE), _SPLIT),
        (AVERAGE, ConvSpec(192)),
    )
)

#: The endpoints up to ``mixed10``, in order, and what each is.
SPECS: Mapping[str, Spec] = {
    **STEM,
    "mixed0": _mixed_35(32),
    "mixed1": _mixed_35(64),
    "mixed2": _mixed_35(64),
    "mixed3": BlockSpec(
        (
            (ConvSpec(384, SQUARE, 2, "VALID"),),
            (ConvSpec(64), ConvSpec(96, SQUARE), ConvSpec(96, SQUARE, 2, "VALID")),
            (HALVE,),
        )
    ),
    "mixed4": _mixed_17(128),
    "mixed5": _mixed_17(160),
    "mixed6": _mixed_17(160),
    "mixed7": _mixed_17(192),
    "mixed8": BlockSpec(
        (
            (ConvSpec(192), ConvSpec(320, SQUARE, 2, "VALID")),
            (
                ConvSpec(192),
                ConvSpec(192, _ROW),
                ConvSpec(192, _COLUMN),
                ConvSpec(192, SQUARE, 2, "VALID"),
            ),
            (HALVE,),
        )
    ),
    "mixed9": _MIXED_8,
    "mixed10": _MIXED_8,
}


class InceptionV3(Backbone):
    """The backbone, with or without its classifier; images from -1 to 1, at least 75 × 75.

    Attributes:
        framework: ``keras`` or ``torch``.
    """

    framework: str = "keras"

    @nn.compact
    def forward(self, x: Array, train: bool, endpoint: Endpoints) -> None:
        """The endpoints of this module's docstring."""
        specs = SPECS
        if self.framework == "torch":
            specs = {name: inception.as_torch(spec) for name, spec in SPECS.items()}
        x = inception.run(specs, x, train, endpoint, self.dtype)
        classify(x, self.num_classes, endpoint)


def _keras_layers(model: InceptionV3) -> dict[str, keras_order.Stage]:
    return inception.keras_layers(SPECS) | keras_order.classifier(model.num_classes)


def _torch_names(model: InceptionV3) -> Callable[[str], str]:
    return _torch_name


_TORCH_STEM = {
    "conv_1a": "Conv2d_1a_3x3",
    "conv_2a": "Conv2d_2a_3x3",
    "conv_2b": "Conv2d_2b_3x3",
    "conv_3b": "Conv2d_3b_1x1",
    "conv_4a": "Conv2d_4a_3x3",
}
_MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
#: Branches in the order of concatenation, by the mixed blocks that have them.
_BRANCHES = {
    (0, 1, 2): ("branch1x1", "branch5x5", "branch3x3dbl", "branch_pool"),
    (3,): ("branch3x3", "branch3x3dbl"),
    (4, 5, 6, 7): ("branch1x1", "branch7x7", "branch7x7dbl", "branch_pool"),
    (8,): ("branch3x3", "branch7x7x3"),
    (9, 10): ("branch1x1", "branch3x3", "branch3x3dbl", "branch_pool"),
}
_UNNUMBERED = ("branch1x1", "branch_pool")


def _torch_name(path: str) -> str:
    stage, *inside = path.split("/")
    if stage == "logits":
        return "fc"
    *places, layer = inside
    if stage in _TORCH_STEM:
        return f"{_TORCH_STEM[stage]}.{layer}"
    number = int(stage.removeprefix("mixed"))
    (names,) = (names for numbers, names in _BRANCHES.items() if number in numbers)
    branch = names[int(places[0].removeprefix("branch"))]
    if branch not in _UNNUMBERED and (number, branch) != (3, "branch3x3"):
        if places[1] == "split":  # the last of the branch, in two halves: 2a and 2b, or 3a and 3b
            branch += ("_2" if branch == "branch3x3" else "_3") + "ab"[int(places[2][-1])]
        else:
            branch += f"_{places[1].removeprefix('conv')}"
    return f"Mixed_{_MIXED[number]}.{branch}.{layer}"


BACKBONES["keras_inception_v3"] = Entry(
    InceptionV3,
    image_size=299,
    normalisation="minus_one_one",
    source="keras.applications",
    licence="Apache-2.0",
    keras_layers=_keras_layers,
)
BACKBONES["torch_inception_v3"] = Entry(
    functools.partial(InceptionV3, framework="torch"),
    image_size=299,
    # torchvision's weights are TensorFlow's and want its range.
    normalisation="minus_one_one",
    source="torchvision",
    licence="BSD-3-Clause",
    torch_names=_torch_names,
)
