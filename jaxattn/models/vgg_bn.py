"""VGG (Simonyan and Zisserman 2015, arXiv:1409.1556) with batch norm, as torchvision has it.

Convolutions have a bias; batch norm has epsilon 1e-5 and, as Flax counts it, momentum 0.9.

Endpoints, in order, with their shapes for VGG-16 and images of 224 × 224:

=======================  ============  ===========================================
``conv1_1``, ``conv1_2``  224 224 64   3×3, batch norm, ReLU
``pool1``                112 112 64
``conv2_1``, ``conv2_2``  112 112 128
``pool2``                56 56 128
``conv3_1`` … ``_3``     56 56 256
``pool3``                28 28 256
``conv4_1`` … ``_3``     28 28 512
``pool4``                14 14 512
``conv5_1`` … ``_3``     14 14 512
``pool5``                7 7 512
``flatten``              25088         only with classes, as all below
``fc1``, ``fc2``         4096          ReLU, dropout
``logits``               classes
=======================  ============  ===========================================

Parameters lie under the same names, ``conv5_3/conv/kernel`` and ``conv5_3/bn/scale``. The network
can also stop inside a convolution, at ``conv5_3/conv`` or ``conv5_3/bn``. ``flatten`` goes through
channels first, as in PyTorch, so that its weights fit with no more than a transposition.
"""

import functools

from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.models.backbone import Backbone, Stage, of_module
from jaxattn.models.layers import ConvBN
from jaxattn.models.vgg import BLOCKS
from jaxattn.ops.pool import max_pool

#: Channels of each block.
FEATURES = (64, 128, 256, 512, 512)
#: He et al. 2015 for layers followed by a ReLU: forwards (fan-in) and backwards (fan-out).
HE_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

_HIDDEN = 4096


class Pool(nn.Module):
    """2×2 max-pooling. A module, so that what it returns can be found by name (Grad-CAM)."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, stop: tuple[str, ...] = ()
    ) -> Float[Array, "B h w C"]:
        """Halves height and width; an odd last row or column is dropped."""
        return max_pool(x, (2, 2), (2, 2), "VALID")


class VGGBN(Backbone):
    """The backbone, with or without its classifier; torchvision's weights want ``imagenet`` images.

    Attributes:
        blocks: Convolutions in each block; by default those of VGG-16.
        width: What all numbers of channels are multiplied by.
        dropout_rate: Share of the activations dropped after each hidden dense layer.
    """

    blocks: tuple[int, ...] = BLOCKS["vgg16"]
    width: float = 1.0
    dropout_rate: float = 0.5

    def stages(self) -> dict[str, Stage]:
        """The endpoints of this module's docstring."""
        stages: dict[str, Stage] = {}
        for i, (convs, features) in enumerate(zip(self.blocks, FEATURES, strict=True), 1):
            for name in (f"conv{i}_{j}" for j in range(1, convs + 1)):
                make = functools.partial(
                    ConvBN,
                    self._scaled(features),
                    (3, 3),
                    use_bias=True,
                    epsilon=1e-5,
                    momentum=0.9,
                    kernel_init=HE_FAN_OUT,
                    dtype=self.dtype,
                    name=name,
                )
                stages[name] = of_module(make, ("conv", "bn"))
            stages[f"pool{i}"] = of_module(functools.partial(Pool, name=f"pool{i}"))
        if self.num_classes is not None:
            stages["flatten"] = Stage(_flatten)
            stages |= {name: self._hidden(name) for name in ("fc1", "fc2")}
            stages["logits"] = self._logits(self.num_classes)
        return stages

    def _scaled(self, features: int) -> int:
        return max(1, round(features * self.width))

    def _hidden(self, name: str) -> Stage:
        def apply(x: Array, train: bool, stop: tuple[str, ...]) -> Array:
            init = nn.initializers.normal(0.01)
            x = nn.Dense(self._scaled(_HIDDEN), kernel_init=init, dtype=self.dtype, name=name)(x)
            return nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(x))

        return Stage(apply)

    def _logits(self, num_classes: int) -> Stage:
        def apply(x: Array, train: bool, stop: tuple[str, ...]) -> Array:
            return nn.Dense(num_classes, kernel_init=nn.initializers.normal(0.01), name="logits")(x)

        return Stage(apply)


def _flatten(x: Array, train: bool, stop: tuple[str, ...]) -> Array:
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
