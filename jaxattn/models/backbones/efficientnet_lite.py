"""EfficientNet-Lite 0 to 4 (Google 2020): EfficientNet without squeeze-and-excitation, with ReLU6.

EfficientNet is Tan and Le 2019, arXiv:1905.11946; the Lite variants are defined by the TensorFlow
TPU repository (Apache-2.0), and so are their weights, which PyTorch packages and timm's
``tf_efficientnet_lite0`` … ``4`` carry. Padding is TensorFlow's SAME, batch norm has epsilon 1e-3
and momentum 0.99, images are scaled to [-1, 1]. With ``framework="torch"`` the network is timm's
own ``efficientnet_lite0``: padded on both sides alike, epsilon 1e-5 and, as Flax counts it,
momentum 0.9, for ``imagenet`` images. Stem and head keep their width and the first and last stage
their depth in all variants.

Endpoints, in order, with their shapes for Lite0 and images of 224 × 224:

=============================  ============  =================================================
``stem``                       112 112 32    3×3, batch norm, ReLU6
``block1_1``                   112 112 16    no expansion, depthwise 3×3
``block2_1``, ``block2_2``     56 56 24      expansion to six times the channels, depthwise 3×3
``block3_1``, ``block3_2``     28 28 40      depthwise 5×5
``block4_1`` … ``block4_3``    14 14 80      depthwise 3×3
``block5_1`` … ``block5_3``    14 14 112     depthwise 5×5
``block6_1`` … ``block6_4``    7 7 192       depthwise 5×5
``block7_1``                   7 7 320       depthwise 3×3
``head``                       7 7 1280      1×1, batch norm, ReLU6
``global_pool``                1280          only with classes
``logits``                     classes       only with classes
=============================  ============  =================================================

A block's parts are ``expand``, ``depthwise`` and ``project``, each ``conv`` and ``bn``:
``block6_4/project/bn``.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.models.backbones.base import BACKBONES, Backbone, Endpoints, Entry, dense, global_pool
from jaxattn.models.layers import HE_FAN_IN, HE_FAN_OUT, ConvBN

STEM, HEAD = 32, 1280


class Stage(NamedTuple):
    """A stage of Lite0: blocks, kernel size, stride of the first block, expansion, channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
#: Multipliers of channels and blocks, image size and dropout rate of Lite0 to Lite4.
VARIANTS = (
    (1.0, 1.0, 224, 0.2),
    (1.0, 1.1, 240, 0.2),
    (1.1, 1.2, 260, 0.3),
    (1.2, 1.4, 280, 0.3),
    (1.4, 1.8, 300, 0.3),
)
#: Epsilon and momentum of batch norm, by framework.
NORM: dict[str, dict[str, Any]] = {
    "tensorflow": {"epsilon": 1e-3, "momentum": 0.99},
    "torch": {"epsilon": 1e-5, "momentum": 0.9},
}


class EfficientNetLite(Backbone):
    """See this module's docstring.

    Attributes:
        width: Multiplies the channels of all stages.
        depth: Multiplies the blocks of all stages but the first and last.
        framework: ``tensorflow``, or ``torch`` for timm's own network.
        dropout_rate: Share of the pooled features dropped in training; only with classes.
        drop_path: Probability that the last block's residual is left out for an image in training;
            that of earlier blocks grows linearly from 0 (Huang et al. 2016, arXiv:1603.09382).
            Published: 0.2.
    """

    width: float = 1.0
    depth: float = 1.0
    framework: str = "tensorflow"
    dropout_rate: float = 0.2
    drop_path: float = 0.0

    @nn.compact
    def forward(self, x: Array, train: bool, endpoint: Endpoints) -> None:
        """The endpoints of this module's docstring."""
        norm, torch = NORM[self.framework], self.framework == "torch"
        conv_bn: Any = functools.partial(
            ConvBN, activate=False, kernel_init=HE_FAN_OUT, dtype=self.dtype, **norm
        )
        stem = conv_bn(STEM, (3, 3), 2, padding=_padding(3, torch), name="stem")
        x = endpoint("stem", relu6(stem(x, train=train)))
        names = block_names(self.depth)
        for i, (name, stage, stride) in enumerate(names):
            block = Block(
                features=rounded(stage.features * self.width),
                expansion=stage.expansion,
                kernel=stage.kernel,
                stride=stride,
                framework=self.framework,
                drop_path=self.drop_path * i / len(names),
                dtype=self.dtype,
                name=name,
            )
            x = endpoint(name, block(x, train=train))
        x = endpoint("head", relu6(conv_bn(HEAD, name="head")(x, train=train)))
        if self.num_classes is not None:
            x = endpoint("global_pool", global_pool(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
            endpoint("logits", dense(x, "logits", self.num_classes))


class Block(nn.Module):
    """An inverted residual (Sandler et al. 2018, arXiv:1801.04381): expand, filter, project.

    Attributes:
        features: Channels of the output.
        expansion: Channels in between, as a multiple of the input's.
        kernel: Height and width of the depthwise filters.
        stride: Theirs.
        framework: See `EfficientNetLite`.
        drop_path: Probability that the residual is left out.
        dtype: Type of the activations.
    """

    features: int
    expansion: int
    kernel: int
    stride: int
    framework: str
    drop_path: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Returns the block's output; there is no activation at its end."""
        conv_bn: Any = functools.partial(
            ConvBN, activate=False, kernel_init=HE_FAN_OUT, dtype=self.dtype, **NORM[self.framework]
        )
        inner = x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1:
            y = relu6(conv_bn(inner, name="expand")(y, train=train))
        depthwise = conv_bn(
            inner,
            (self.kernel, self.kernel),
            self.stride,
            padding=_padding(self.kernel, self.framework == "torch"),
            groups=inner,
            kernel_init=HE_FAN_IN,
            name="depthwise",
        )
        y = relu6(depthwise(y, train=train))
        y = conv_bn(self.features, name="project")(y, train=train)
        if self.stride > 1 or x.shape[-1] != self.features:
            return y
        drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3), deterministic=not train)
        return x + drop(y)


def relu6(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The positive part, at most 6."""
    return jnp.clip(x, 0.0, 6.0)


def rounded(features: float) -> int:
    """Channels as a multiple of 8, the nearest one that is at least 90% of the number."""
    nearest = max(8, int(features + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * features else nearest + 8


def block_names(depth: float) -> list[tuple[str, Stage, int]]:
    """Each block's name, stage and stride."""
    last = len(STAGES)
    return [
        (f"block{i}_{j}", stage, stage.stride if j == 1 else 1)
        for i, stage in enumerate(STAGES, 1)
        for j in range(1, 1 + (stage.blocks if i in (1, last) else math.ceil(stage.blocks * depth)))
    ]


def _padding(kernel: int, torch: bool) -> str | tuple[tuple[int, int], ...]:
    return ((kernel // 2, kernel // 2),) * 2 if torch else "SAME"


def _torch_names(model: EfficientNetLite) -> Callable[[str], str]:
    """What timm calls our layers."""
    del model

    def name(path: str) -> str:
        layer, _, inside = path.partition("/")
        if not layer.startswith("block"):
            outside = {"stem/conv": "conv_stem", "stem/bn": "bn1"}
            return (outside | {"head/conv": "conv_head", "head/bn": "bn2"}).get(path, "classifier")
        stage, block = (int(i) - 1 for i in layer.removeprefix("block").split("_"))
        units = ("depthwise", "project") if stage == 0 else ("expand", "depthwise", "project")
        unit, kind = inside.split("/")
        if kind == "bn":
            return f"blocks.{stage}.{block}.bn{units.index(unit) + 1}"
        convs = {"expand": "pw", "depthwise": "dw", "project": "pwl" if stage else "pw"}
        return f"blocks.{stage}.{block}.conv_{convs[unit]}"

    return name


def _package_names(model: EfficientNetLite) -> Callable[[str], str]:
    """What the packages that carry TensorFlow's weights call our layers."""
    place = {name: i for i, (name, _, _) in enumerate(block_names(model.depth))}
    units = {"expand": "0", "depthwise": "1", "project": "2"}

    def name(path: str) -> str:
        layer, _, inside = path.partition("/")
        if layer not in place:
            outside = {"stem/conv": "_conv_stem", "stem/bn": "_bn0"}
            return (outside | {"head/conv": "_conv_head", "head/bn": "_bn1"}).get(path, "_fc")
        unit, kind = inside.split("/")
        last = f"_{unit}_conv" if kind == "conv" else f"_bn{units[unit]}"
        return f"_blocks.{place[layer]}.{last}"

    return name


for _i, (_width, _depth, _size, _dropout) in enumerate(VARIANTS):
    BACKBONES[f"torch_efficientnet_lite{_i}"] = Entry(
        functools.partial(EfficientNetLite, width=_width, depth=_depth, dropout_rate=_dropout),
        image_size=_size,
        normalisation="minus_one_one",
        source="TensorFlow TPU models; PyTorch packages and timm's tf_efficientnet_lite",
        licence="Apache-2.0",
        torch_names=_torch_names,
        torch_aliases=_package_names,
    )
BACKBONES["torch_efficientnet_lite0_timm"] = Entry(
    functools.partial(EfficientNetLite, framework="torch"),
    source="timm's efficientnet_lite0",
    licence="Apache-2.0",
    torch_names=_torch_names,
)
