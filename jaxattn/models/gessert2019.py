"""The classifiers of Gessert et al. 2019: any backbone, over the crops of an image or all of it.

All crops of an image go through one backbone, folded into the batch's axis. What the paper calls

=================  ==============================  ==============================================
Initial attention  ``attention=("initial",)``      weighs the crops' pixels
End attention      ``attention=("end",)``          weighs the crops' pooled features
Dual attention     ``("initial", "end")``          both
GRU                ``head="gru"``                  reads the crops' pooled features in order
=================  ==============================  ==============================================

Attention can also follow any endpoint of the backbone, by its name. Without crops, for images that
are downsampled or of which one crop is seen at a time, the same class is the plain classifier.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.errors import invalid, unknown
from jaxattn.models.attention.patch import GRUAggregation, PatchAttention
from jaxattn.models.backbones import BACKBONES, Entry
from jaxattn.models.registry import MODELS, Model

HEADS = ("end_pool", "sum", "conv", "concat", "gru")


class PatchClassifier(nn.Module):
    """A backbone over crops, attention over crops at any places, and a head.

    Attributes:
        num_classes: Number of logits.
        backbone: A name in ``BACKBONES``, or an entry.
        endpoint: Where the backbone ends; by default, before its pooling. (Gessert et al. end their
            DenseNet at ``bn``, before its last ReLU.)
        attention: Where there is attention, each with parameters of its own: ``initial``, ``end``
            or the name of an endpoint.
        head: From the crops' pooled features to logits. ``end_pool``: a dense layer, then the mean
            of the crops' logits. ``sum``: the crops' sum, then a dense layer. ``conv``: a 1×1
            convolution over the crops, which is a learnt sum with a bias, then a dense layer.
            ``concat``: all features of all crops, then a dense layer. ``gru``: see
            ``GRUAggregation``, then a dense layer.
        units: Size of the state of ``gru``.
        dtype: Type of the activations; parameters, batch statistics and logits are float32.
    """

    num_classes: int
    backbone: str | Entry = "torch_densenet121"
    endpoint: str | None = None
    attention: tuple[str, ...] = ()
    head: str = "end_pool"
    units: int = 1024
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B *NC H W 3"], *, train: bool
    ) -> tuple[Float[Array, "B {self.num_classes}"], dict[str, Float[Array, "B crops 1 1"]]]:
        """Classifies.

        Args:
            images: Normalised: the NC crops of each image, in order, or one image each.
            train: Whether batch norm uses, and updates, the statistics of the batch: of all crops.

        Returns:
            Logits, float32; and of each place of attention the crops' weights, float32, as
            ``patch_attention_PLACE``.

        Raises:
            InputError: Unknown head or place, or images without crops for what needs crops.
        """
        count = self._count(images)
        attend = {
            place: PatchAttention(count, name=f"attention_{place}") for place in self.attention
        }
        maps = {}
        x = images.reshape(-1, *images.shape[-3:])
        if "initial" in attend:
            x, maps["initial"] = attend.pop("initial")(x, train=train)
        at_end = attend.pop("end", None)
        entry = BACKBONES[self.backbone] if isinstance(self.backbone, str) else self.backbone
        backbone = entry.make(
            final_endpoint=self.endpoint, plugins=attend, dtype=self.dtype, name="backbone"
        )
        x, endpoints = backbone(x, train=train)
        maps |= {place: endpoints[f"{place}/maps"] for place in attend}
        if x.ndim == 4:
            x = x.astype(jnp.float32).mean((1, 2))
        if at_end is not None:
            x, maps["end"] = at_end(x, train=train)
        return self._logits(x, count), {f"patch_attention_{at}": each for at, each in maps.items()}

    def _count(self, images: Array) -> int:
        """The number of crops, 1 for whole images; checks the attributes."""
        if self.head not in HEADS:
            raise unknown("model.head", self.head, HEADS)
        if images.ndim == 5:
            return images.shape[1]
        if self.attention or self.head != "end_pool":
            given = f"attention={self.attention}" if self.attention else f"head={self.head!r}"
            raise invalid("crops.strategy", f"'ordered' for model.{given}", "whole images")
        return 1

    def _logits(self, x: Float[Array, "inputs F"], count: int) -> Float[Array, "B classes"]:
        dense = nn.Dense(self.num_classes, name="logits")
        if self.head == "gru":
            states = GRUAggregation(count, self.units, self.dtype, name="gru")(x)
            return dense(states.astype(jnp.float32))
        crops = x.astype(jnp.float32).reshape(-1, count, x.shape[-1])
        if self.head == "end_pool":
            return dense(crops).mean(1)
        if self.head == "sum":
            return dense(crops.sum(1))
        if self.head == "conv":
            return dense(nn.Dense(1, name="conv")(crops.swapaxes(1, 2))[..., 0])
        return dense(crops.reshape(crops.shape[0], -1))


MODELS["gessert2019"] = Model(PatchClassifier, 224, normalisation="unit")
