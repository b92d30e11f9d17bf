"""VGG (Simonyan and Zisserman 2015, arXiv:1409.1556) without batch norm, as in Keras.

The network is the one of ``keras.applications``, layer for layer; there is no dropout.

Endpoints, in order, with their shapes for VGG-16 and images of 224 × 224:

====================================  ============  ==============================
``block1_conv1``, ``block1_conv2``    224 224 64    3×3, ReLU
``block1_pool``                       112 112 64
``block2_conv1``, ``block2_conv2``    112 112 128
``block2_pool``                       56 56 128
``block3_conv1`` … ``block3_conv3``   56 56 256
``block3_pool``                       28 28 256
``block4_conv1`` … ``block4_conv3``   28 28 512
``block4_pool``                       14 14 512
``block5_conv1`` … ``block5_conv3``   14 14 512
``block5_pool``                       7 7 512
``flatten``                           25088         only with classes, as all below
``fc1``, ``fc2``                      4096          ReLU
``logits``                            classes
====================================  ============  ==============================

Parameters lie under the same names: ``block5_conv3/kernel``.
"""

from flax import linen as nn
from jaxtyping import Array

from jaxattn.models.backbone import Backbone, Stage, dense, flatten, max_pool
from jaxattn.models.layers import Conv

#: Convolutions in each of the five blocks.
BLOCKS: dict[str, tuple[int, ...]] = {
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_FEATURES = (64, 128, 256, 512, 512)
_HIDDEN = 4096


class VGG(Backbone):
    """The backbone, with or without its classifier; images as Caffe has them: BGR, minus means.

    Attributes:
        blocks: Convolutions in each block; by default those of VGG-16, see ``BLOCKS``.
    """

    blocks: tuple[int, ...] = BLOCKS["vgg16"]

    def stages(self) -> dict[str, Stage]:
        """The endpoints of this module's docstring."""
        stages = {}
        for i, (convs, features) in enumerate(zip(self.blocks, _FEATURES, strict=True), 1):
            for name in (f"block{i}_conv{j}" for j in range(1, convs + 1)):
                stages[name] = self._conv(name, features)
            stages[f"block{i}_pool"] = max_pool(2, 2, "VALID")
        if self.num_classes is not None:
            stages["flatten"] = Stage(flatten)
            stages["fc1"] = dense("fc1", _HIDDEN, self.dtype, activate=True)
            stages["fc2"] = dense("fc2", _HIDDEN, self.dtype, activate=True)
            stages["logits"] = dense("logits", self.num_classes)
        return stages

    def _conv(self, name: str, features: int) -> Stage:
        def apply(x: Array, train: bool, stop: tuple[str, ...]) -> Array:
            return nn.relu(Conv(features, (3, 3), dtype=self.dtype, name=name)(x))

        return Stage(apply)
