"""The classifiers of Datta et al. 2021 (arXiv:2105.03358).

On pre-trained backbones: the backbone up to an endpoint, the Soft-Attention block of Fig. 4 and a
small head; the baseline is the same without the block. The two networks built by hand go on after
attention; they are ``datta_resnet34`` and ``datta_vgg16``, each as a ``Classifier``.

As released, attention sits inside a block, where the authors' count of layers from the end led it;
in the paper it follows the block:

===================  ==================================================  =====================
network              released                                            paper
===================  ==================================================  =====================
Inception-ResNet-v2  ``block8_9/branch0/conv1/bn``, 8×8×192, no ReLU     ``block8_10``
DenseNet-201         ``conv5_block29/conv1``, 7×7×128, the bottleneck    ``conv5_block32``
ResNet-50            ``conv5_block3``, 7×7×2048                          the same
ISIC 2017, 5×5       ``block8_9/branch0/conv1/conv``, 5×5×192, no norm
ISIC 2017, 12×12     ``block17_18/branch1/conv2``, 12×12×160
===================  ==================================================  =====================

Nothing beside or after the endpoint is part of the model. The last two are Inception-ResNet-v2 at
224 × 224; one keeps its 16 maps apart, the other goes on with ``units``.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.models import koefler2023
from jaxattn.models.attention.soft import SoftAttentionBlock
from jaxattn.models.backbones import BACKBONES, Entry, datta_resnet34
from jaxattn.models.backbones.datta_resnet34 import DattaResNet34
from jaxattn.models.backbones.datta_vgg16 import DattaVGG16
from jaxattn.models.classifier import Classifier
from jaxattn.models.layers import Conv, ConvReluBN
from jaxattn.models.registry import MODELS, Model


class Unit(nn.Module):
    """The authors' own residual block of the ISIC 12×12 model, and a 1×1 convolution after it.

    Two branches, of 1×1 and of 1×1, 3×1 and 1×3 convolutions, are concatenated, projected to the
    input's channels and added to the input. Every convolution has a bias and a ReLU; the last of
    each branch and the projection have batch norm after it.

    Attributes:
        features: Channels of the last convolution.
        dtype: Type of the activations.
    """

    features: int = 1024
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool
    ) -> Float[Array, "B H W {self.features}"]:
        """Applies the block; batch norm is of this batch where ``train``."""
        conv = functools.partial(Conv, dtype=self.dtype)
        conv_bn = functools.partial(ConvReluBN, dtype=self.dtype)
        branch0 = conv_bn(192, (1, 1), name="branch0_conv1")(x, train=train)
        branch1 = nn.relu(conv(192, (1, 1), name="branch1_conv1")(x))
        branch1 = nn.relu(conv(192, (3, 1), name="branch1_conv2")(branch1))
        branch1 = conv_bn(192, (1, 3), name="branch1_conv3")(branch1, train=train)
        mixed = jnp.concatenate([branch0, branch1], axis=-1)
        x = x + conv_bn(x.shape[-1], (1, 1), name="projection")(mixed, train=train)
        return nn.relu(conv(self.features, (1, 1), name="conv")(x))


class TappedClassifier(nn.Module):
    """A backbone up to an endpoint, Soft-Attention there, and a dense layer.

    The baseline without attention has ReLU and dropout in its place, and no pooling.

    Attributes:
        num_classes: Number of logits.
        backbone: The backbone.
        endpoint: Where the backbone ends.
        variant: ``'released'`` or ``'paper'``, see ``SoftAttention``; None for the baseline.
        heads: Number of attention maps.
        aggregate: Whether the maps are summed, or weigh the features one by one.
        dropout_rate: Share of the activations dropped after attention.
        units: Blocks of convolutions after attention, see ``Unit``.
        flatten: Whether the dense layer sees every position, or their mean.
        dtype: Type of the activations; parameters, batch statistics and logits are float32.
    """

    num_classes: int
    backbone: Entry
    endpoint: str
    variant: str | None = "released"
    heads: int = 16
    aggregate: bool = True
    dropout_rate: float = 0.5
    units: int = 0
    flatten: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool
    ) -> tuple[Float[Array, "B {self.num_classes}"], dict[str, Float[Array, "B K h w"]]]:
        """Classifies.

        Args:
            images: Images as the backbone wants them; those of the authors are from -1 to 1.
            train: Whether batch norm uses the batch, and activations are dropped (random stream
                ``dropout``).

        Returns:
            Logits, float32; and ``{'soft_attention': maps}``, float32, each of sum 1 over
            positions, or for the baseline an empty dict.

        Raises:
            InputError: ``endpoint`` is none of the backbone's.
        """
        backbone = self.backbone.make(
            final_endpoint=self.endpoint, dtype=self.dtype, name="backbone"
        )
        x, _ = backbone(images, train=train)
        maps = {}
        if self.variant is None:
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(x))
        else:
            x, maps["soft_attention"] = SoftAttentionBlock(
                self.heads,
                self.variant,
                self.aggregate,
                dropout_rate=self.dropout_rate,
                dtype=self.dtype,
                name="attention",
            )(x, train=train)
        for i in range(1, self.units + 1):
            x = Unit(dtype=self.dtype, name=f"unit{i}")(x, train=train)
        x = x.astype(jnp.float32)
        x = x.reshape(x.shape[0], -1) if self.flatten else x.mean((1, 2))
        kernel_init = nn.initializers.glorot_uniform()
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name="logits")(x), maps


def _register() -> None:
    """As released without attention and with it, and as in the paper, with pixels / 255."""
    irv2: dict[str, Any] = {
        "backbone": BACKBONES["keras_inception_resnet_v2"],
        "endpoint": "block8_9/branch0/conv1/bn",
    }
    densenet201: dict[str, Any] = {
        "backbone": BACKBONES["keras_densenet201"],
        "endpoint": "conv5_block29/conv1",
    }
    resnet50: dict[str, Any] = {
        "backbone": BACKBONES["keras_resnet50"],
        "endpoint": "conv5_block3",
        "flatten": False,
    }
    for name, size, fixed, in_paper, dropout in (
        ("irv2", 299, irv2, "block8_10", {}),
        ("densenet201", 224, densenet201, "conv5_block32", {"dropout_rate": 0.0}),
        ("resnet50", 224, resnet50, "conv5_block3", {"dropout_rate": 0.0}),
    ):
        paper = {"variant": "paper", "endpoint": in_paper}
        MODELS[name] = Model(TappedClassifier, size, fixed | {"variant": None} | dropout)
        MODELS[f"{name}_sa"] = Model(TappedClassifier, size, fixed | {"variant": "released"})
        MODELS[f"{name}_sa_paper"] = Model(TappedClassifier, size, fixed | paper, "unit")
    for name, attributes in (
        ("5x5", {"endpoint": "block8_9/branch0/conv1/conv", "aggregate": False}),
        ("12x12", {"endpoint": "block17_18/branch1/conv2", "units": 6, "flatten": False}),
    ):
        isic = irv2 | {"variant": "released"} | attributes
        MODELS[f"isic_irv2_sa_{name}"] = Model(TappedClassifier, 224, isic, num_classes=2)
    _register_built_by_hand("resnet34", _RESNET34, {"attention_at": "conv3_block4"})
    _register_built_by_hand(
        "vgg16", _VGG16, {"attention_at": "block4_conv3", "skip": ("block4_pool",)}
    )


def _register_built_by_hand(name: str, backbone: Entry, attended: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"backbone": backbone}
    MODELS[name] = Model(Classifier, 224, plain)
    for suffix, attention, normalisation in (
        ("sa", "soft_block", "minus_one_one"),
        ("sa_paper", "soft_paper_block", "unit"),
    ):
        fixed = plain | attended | {"attention": attention}
        MODELS[f"{name}_{suffix}"] = Model(Classifier, 224, fixed, normalisation)


_BY_HAND = functools.partial(Entry, normalisation="minus_one_one", source="Datta et al. 2021")
_RESNET34 = _BY_HAND(DattaResNet34, keras_layers=datta_resnet34.keras_layers)
_VGG16 = _BY_HAND(DattaVGG16, keras_layers=koefler2023.keras_layers)
_register()
