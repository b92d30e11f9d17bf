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

from jaxattn.models.backbone import Backbone, Stage, classifier, max_pool, of_module
from jaxattn.models.layers import ConvReluBN, residual


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
        self, x: Float[Array, "B H W C"], *, train: bool, stop: tuple[str, ...] = ()
    ) -> Float[Array, "B H W {self.features}"]:
        """Returns the unit's output, or that of ``conv1``, ``conv2`` or ``shortcut``."""
        conv = functools.partial(ConvReluBN, self.features, dtype=self.dtype)
        if self.project and stop in ((), ("shortcut",)):
            shortcut = conv(name="shortcut")(x, train=train)
            if stop:
                return shortcut
        else:
            shortcut = x
        for name in ("conv1", "conv2"):
            x = conv(name=name)(x, train=train)
            if stop == (name,):
                return x
        return nn.relu(residual(shortcut, x))


class DattaResNet34(Backbone):
    """The backbone, with or without its classifier; images from -1 to 1.

    Attributes:
        blocks: Units of each width.
    """

    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)

    def stages(self) -> dict[str, Stage]:
        """The endpoints of this module's docstring."""
        stem = functools.partial(ConvReluBN, 64, stride=2, dtype=self.dtype, name="conv1")
        stages = {"conv1": of_module(stem, ("conv", "relu")), "pool1": max_pool(3, 2)}
        for i, count in enumerate(self.blocks, 2):
            features, project = 64 * 2 ** (i - 2), i > 2
            inside = ("conv1", "conv2", "shortcut") if project else ("conv1", "conv2")
            for j in range(1, count + 1):
                name = f"conv{i}_block{j}"
                unit = functools.partial(Unit, features, project, self.dtype, name=name)
                stages[name] = of_module(unit, inside)
            if i in (2, 4):
                stages[f"pool{i}"] = max_pool(2, 2)
        return stages | classifier(self.num_classes)
