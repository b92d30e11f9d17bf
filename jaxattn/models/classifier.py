"""Any backbone as a classifier, without attention or with Soft-Attention after any endpoint."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.models.backbone import Backbone
from jaxattn.models.soft_attention import SoftAttention, SoftAttentionBlock


class Classifier(nn.Module):
    """A whole backbone with its classifier; attention, if any, on the way.

    Attributes:
        num_classes: Number of logits.
        backbone: Makes the backbone, from the attributes of ``Backbone``.
        attention_at: Endpoint after which to attend; none without.
        semantics: ``'released'`` or ``'paper'``, see ``SoftAttention``.
        heads: Number of attention maps.
        join: Whether pooled features and pooled attended features go on side by side (Datta et al.
            2021, Fig. 4). If not, attended features go on in the features' place, shape and all;
            inside a stage of a residual network that is the only way.
        pool: With ``join``: window, stride and padding of the pooling.
        dropout_rate: With ``join``: share of the activations dropped after attention.
        skip: Endpoints to leave out, such as a pool whose place attention takes.
        dtype: Type of the activations; parameters, batch statistics and logits are float32.
    """

    num_classes: int
    backbone: Callable[..., Backbone]
    attention_at: str | None = None
    semantics: str = "released"
    heads: int = 16
    join: bool = True
    pool: tuple[int, int, str] = (2, 2, "SAME")
    dropout_rate: float = 0.5
    skip: tuple[str, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool
    ) -> tuple[Float[Array, "B {self.num_classes}"], dict[str, Float[Array, "B K h w"]]]:
        """Classifies.

        Args:
            images: Normalised images.
            train: Whether batch norm uses the batch, and activations are dropped (random stream
                ``dropout``).

        Returns:
            Logits, float32; and ``{'soft_attention': maps}``, float32, each of sum 1 over
            positions, or without attention an empty dict.

        Raises:
            InputError: ``attention_at`` or ``skip`` name no endpoint, or the backbone cannot go on
                with what attention returns there.
        """
        at = self.attention_at
        backbone = self.backbone(
            num_classes=self.num_classes,
            plugins={at: self._attention()} if at else {},
            skip=self.skip,
            dtype=self.dtype,
            name="backbone",
        )
        logits, endpoints = backbone(images, train=train)
        return logits, {"soft_attention": endpoints[f"{at}/maps"]} if at else {}

    def _attention(self) -> nn.Module:
        if not self.join:
            return SoftAttention(self.heads, self.semantics, dtype=self.dtype, name="attention")
        return SoftAttentionBlock(
            self.heads,
            self.semantics,
            pool=self.pool,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
            name="attention",
        )
