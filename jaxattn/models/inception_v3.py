"""Inception-v3 (Szegedy et al. 2016, arXiv:1512.00567), as ``keras.applications`` has it.

Layer for layer: convolutions have no bias, batch norm no scale (epsilon 1e-3, momentum 0.99),
average pools leave the padding out, and there is no auxiliary classifier. As torchvision has it,
with ``torch``: batch norm with scale and, as Flax counts it, momentum 0.9; average pools count the
padding.

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

Parameters lie under the same names: ``mixed4/branch1/conv2/conv/kernel``. Branches are numbered in
the order in which they are concatenated. Branches 1 and 2 of ``mixed9`` and ``mixed10`` end in two
branches: ``mixed9/branch1/split/branch0/conv1/conv/kernel``. The network can also stop at any
convolution, pool or split inside an endpoint, as at ``mixed4/branch1/conv2``; or before a
convolution's ReLU, at ``mixed4/branch1/conv2/bn``; or before its batch norm, at
``mixed4/branch1/conv2/conv``.
"""

from collections.abc import Mapping

from jaxattn.models import inception
from jaxattn.models.backbone import Backbone, Stage, classifier
from jaxattn.models.inception import AVERAGE, HALVE, SQUARE, STEM, BlockSpec, ConvSpec, Spec

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
        torch: Whether its layers are torchvision's.
    """

    torch: bool = False

    def stages(self) -> dict[str, Stage]:
        """The endpoints of this module's docstring."""
        specs = {n: inception.as_torch(spec) for n, spec in SPECS.items()} if self.torch else SPECS
        stages = {name: inception.stage(name, spec, self.dtype) for name, spec in specs.items()}
        return stages | classifier(self.num_classes)
