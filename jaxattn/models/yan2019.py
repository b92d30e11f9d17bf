"""The classifiers of Yan et al. 2019 (IPMI; AttnMel-CNN), and their like over any backbone.

All have VGG-16 with batch norm (``vgg_bn``) without its dense layers below them:

=============  =====================================================  =========================
AttnMel-CNN    gates on pool3 and pool4, guided by pool5              section 2.1, figure 1
Mel-CNN        global averages of pool3 and pool4 instead             section 3.2
VGG-16-GAP     the global average of pool5 alone                      section 3.2
=============  =====================================================  =========================

The fourth, VGG-16 with its dense layers, is `VGGBN` itself, see `Classifier`. The variants -Lesion,
-Dermo and -Bkg of AttnMel-CNN differ in their loss alone (`jaxattn.losses.MapDice`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.errors import unknown
from jaxattn.models.attention.gate import AttentionGate
from jaxattn.models.backbones import BACKBONES, Entry
from jaxattn.models.classifier import Classifier
from jaxattn.models.registry import MODELS, Model


class GatedClassifier(nn.Module):
    """A dense layer on the mean features of a global endpoint and on those of local ones.

    Attributes:
        num_classes: Number of logits.
        backbone: The backbone.
        backbone_options: Further attributes of it, such as ``{"width": 0.25}``.
        guide: The global endpoint; the backbone ends there.
        local: Local endpoints, on the way to it; the pooled features of the global one and of
            these, in this order, are the dense layer's input.
        gated: Whether an attention gate pools each local endpoint, or the plain mean.
        normalise: Of the gates, see ``AttentionGate``.
        features: Of the gates, see ``AttentionGate``.
        dropout_rate: Share of the pooled features dropped.
        dtype: Type of the activations; parameters, batch statistics and logits are float32.
    """

    num_classes: int
    backbone: Entry
    backbone_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    guide: str = "pool5"
    local: tuple[str, ...] = ("pool3", "pool4")
    gated: bool = True
    normalise: str = "sigmoid"
    features: int = 256
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool
    ) -> tuple[Float[Array, "B {self.num_classes}"], dict[str, Float[Array, "B 1 h w"]]]:
        """Classifies.

        Args:
            images: Normalised images.
            train: Whether batch norm uses the batch, and features are dropped (random stream
                ``dropout``).

        Returns:
            Logits, float32; and the map of each gate, float32, as ``attention_ENDPOINT``.

        Raises:
            InputError: ``guide`` is no endpoint, or a local one is not on the way to it.
        """
        backbone = self.backbone.make(
            final_endpoint=self.guide,
            dtype=self.dtype,
            name="backbone",
            **self.backbone_options,
        )
        guide, endpoints = backbone(images, train=train)
        pooled, maps = [_mean(guide)], {}
        for name in self.local:
            if name not in endpoints:
                raise unknown("model.local", name, endpoints)
            if self.gated:
                gate = AttentionGate(self.features, self.normalise, self.dtype, name=f"gate_{name}")
                features, maps[f"attention_{name}"] = gate(endpoints[name], guide)
            else:
                features = _mean(endpoints[name])
            pooled.append(features)
        x = jnp.concatenate(pooled, axis=-1)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        kernel_init = nn.initializers.normal(0.01)
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name="logits")(x), maps


def _mean(x: Float[Array, "B H W C"]) -> Float[Array, "B C"]:
    return x.astype(jnp.float32).mean(axis=(1, 2))


def _register() -> None:
    """AttnMel-CNN and its three baselines; softmax instead of sigmoid is an option."""
    vgg16_bn = {"backbone": BACKBONES["torch_vgg16_bn"]}
    for name, module, fixed in (
        ("vgg16_bn", Classifier, {}),
        ("vgg16_bn_gap", GatedClassifier, {"local": (), "gated": False}),
        ("melcnn", GatedClassifier, {"gated": False}),
        ("attnmelcnn", GatedClassifier, {"gated": True}),
    ):
        MODELS[name] = Model(module, 224, vgg16_bn | fixed, "isic2017", num_classes=2)


_register()
