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

from flax import linen as nn
from jaxtyping import Array

from jaxattn.models.backbone import Backbone, Stage, dense, flatten, max_pool, of_module
from jaxattn.models.layers import ConvReluBN

#: How ``pool5`` pools: window, stride, padding. CNN-SA's attention block pools so in its place.
POOL5 = (3, 1, "VALID")


class KoeflerCNN(Backbone):
    """The backbone, with or without its classifier; images of bytes, at least 75 × 75.

    Attributes:
        dropout_rate: Share of the activations dropped after each of ``fc1`` and ``fc2``.
    """

    dropout_rate: float = 0.5

    def stages(self) -> dict[str, Stage]:
        """The endpoints of this module's docstring."""
        stages = {
            "conv1": self._conv("conv1", 64, 7, 2, "VALID"),
            "pool1": max_pool(3, 2, "VALID"),
            "conv2": self._conv("conv2", 128, stride=2),
            "pool2": max_pool(3, 1, "VALID"),
            "conv3": self._conv("conv3", 256),
            "pool3": max_pool(3, 1, "VALID"),
            "conv4": self._conv("conv4", 512),
            "conv5": self._conv("conv5", 512),
            "pool5": max_pool(*POOL5),
            "conv6": self._conv("conv6", 512),
            "pool6": max_pool(3, 1, "VALID"),
        }
        if self.num_classes is not None:
            stages["flatten"] = Stage(flatten)
            stages["fc1"] = self._fully_connected("fc1")
            stages["fc2"] = self._fully_connected("fc2")
            stages["logits"] = dense("logits", self.num_classes)
        return stages

    def _conv(
        self, name: str, features: int, size: int = 3, stride: int = 1, padding: str = "SAME"
    ) -> Stage:
        conv = functools.partial(
            ConvReluBN, features, (size, size), stride, padding, dtype=self.dtype, name=name
        )
        return of_module(conv, ("conv", "relu"))

    def _fully_connected(self, name: str) -> Stage:
        layer = dense(name, 4096, self.dtype, activate=True)

        def apply(x: Array, train: bool, stop: tuple[str, ...]) -> Array:
            x = layer.apply(x, train, stop)
            return nn.Dropout(self.dropout_rate, deterministic=not train)(x)

        return Stage(apply)
