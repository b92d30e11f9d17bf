"""Any backbone as a classifier, with any attention after any endpoints."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.errors import invalid
from jaxattn.models.attention import registry as attentions
from jaxattn.models.backbones.base import Entry


class Classifier(nn.Module):
    """A whole backbone with its classifier; attention, if any, on the way.

    Attributes:
        num_classes: Number of logits.
        backbone: The backbone.
        attention: Name in ``ATTENTION``; "" for none. ``soft_block`` and ``soft_paper_block``
            concatenate features and attended features (Datta et al. 2021, Fig. 4), which doubles
            the channels; inside a stage of a residual network only attention that keeps them fits.
        attention_at: The endpoint to attend after.
        attention_options: Attributes of the attention module, such as ``{"heads": 4}``.
        skip: Endpoints to leave out, such as a pool that attention replaces.
        dtype: Type of the activations; parameters, batch statistics and logits are float32.
    """

    num_classes: int
    backbone: Entry
    attention: str = ""
    attention_at: str = ""
    attention_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    skip: tuple[str, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool
    ) -> tuple[Float[Array, "B {self.num_classes}"], dict[str, Float[Array, "_ K h w"]]]:
        """Classifies.

        Args:
            images: Normalised images.
            train: Whether batch norm uses the batch, and activations are dropped (random stream
                ``dropout``).

        Returns:
            Logits, float32; and the attention's maps, float32, by the mechanism's name:
            ``soft_attention``, or its name in ``ATTENTION``; {} without attention or maps.

        Raises:
            InputError: Attention without an endpoint or the reverse, unknown names, or the backbone
                cannot go on with what attention returns there.
        """
        if bool(self.attention) != bool(self.attention_at):
            given = f"attention={self.attention!r} and attention_at={self.attention_at!r}"
            raise invalid("model.attention", "attention and attention_at together", given)
        plugins = {}
        if self.attention:
            options = dict(self.attention_options)
            plugins[self.attention_at] = attentions.create(self.attention, self.dtype, **options)
        backbone = self.backbone.make(
            num_classes=self.num_classes,
            plugins=plugins,
            skip=self.skip,
            dtype=self.dtype,
            name="backbone",
        )
        logits, endpoints = backbone(images, train=train)
        maps = endpoints.get(f"{self.attention_at}/maps")
        return logits, {} if maps is None else {_map_name(self.attention): maps}


def _map_name(name: str) -> str:
    """The name of an attention's maps; all forms of Soft-Attention share one."""
    return "soft_attention" if name.startswith("soft") else name
