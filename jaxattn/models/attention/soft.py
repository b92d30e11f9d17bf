"""Soft-Attention (Datta et al. 2021): the layer, and the block around it (Fig. 4).

The layer that the authors released is not the one in their paper, see
``jaxattn.ops.soft_attention``. ``variant`` chooses:

* ``'released'``, which made the published numbers: no γ, a bias and a ReLU before the softmax, maps
  that depend on channels 0, 1, 2 alone, and a kernel of which only the central 2H - 1 rows ever
  meet data or get a gradient.
* ``'paper'``: equation 1. A 3×3 convolution over all channels, and γ, which starts at 0.01.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.errors import invalid, unknown
from jaxattn.models.attention.registry import ATTENTION
from jaxattn.ops.pool import max_pool
from jaxattn.ops.soft_attention import paper_soft_attention, released_soft_attention


class SoftAttention(nn.Module):
    """Weighs every position by the sum of K attention maps.

    Parameters are float32. Released: ``kernel (C, 3, 3, 1, K)`` and ``bias (K,)``, named and laid
    out as in the published Keras weights. Paper: ``kernel (3, 3, C, K)`` and the scalar ``gamma``.

    Attributes:
        heads: K, the number of maps.
        variant: ``'released'`` or ``'paper'``.
        aggregate: Released only: whether the K maps are summed, or weigh the features one by one
            into K C channels.
        dtype: Type of the attended features. The maps are always computed in float32.
    """

    heads: int = 16
    variant: str = "released"
    aggregate: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool = False
    ) -> tuple[Float[Array, "B H W D"], Float[Array, "B K H W"]]:
        """Attends.

        Args:
            x: Features.
            train: Ignored.

        Returns:
            Attended features, and the K maps, float32, each of sum 1 over positions.

        Raises:
            InputError: Unknown ``variant``, or ``aggregate=False`` with the paper's.
        """
        x = x.astype(self.dtype)
        channels = x.shape[-1]
        init = nn.initializers.he_uniform()
        if self.variant == "released":
            kernel = self.param("kernel", init, (channels, 3, 3, 1, self.heads), jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, (self.heads,), jnp.float32)
            return released_soft_attention(x, kernel, bias, aggregate=self.aggregate)
        if self.variant != "paper":
            raise unknown("variant", self.variant, ("paper", "released"))
        if not self.aggregate:
            raise invalid("aggregate", "True with variant='paper'", False)
        kernel = self.param("kernel", init, (3, 3, channels, self.heads), jnp.float32)
        gamma = self.param("gamma", nn.initializers.constant(0.01), (), jnp.float32)
        return paper_soft_attention(x, kernel, gamma)


class SoftAttentionBlock(nn.Module):
    """Figure 4: pooled features beside pooled attended features, ReLU, dropout.

    Attributes:
        heads: Number of maps.
        variant: ``'released'`` or ``'paper'``.
        aggregate: See ``SoftAttention``.
        pool: Window, stride and padding of the pooling.
        dropout_rate: Share of the activations dropped in training.
        dtype: Type of the activations.
    """

    heads: int = 16
    variant: str = "released"
    aggregate: bool = True
    pool: tuple[int, int, str] = (2, 2, "SAME")
    dropout_rate: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool
    ) -> tuple[Float[Array, "B h w D"], Float[Array, "B K H W"]]:
        """Attends, pools (as published, to half the resolution) and concatenates.

        Args:
            x: Features before their ReLU.
            train: Whether to drop activations, with the random stream ``dropout``.

        Returns:
            Pooled activations, by default of half the height and width, rounded up: first the
            channels of x, then the attended ones. And the maps of x, float32, each of sum 1 over
            positions.
        """
        attended, maps = SoftAttention(
            self.heads, self.variant, self.aggregate, self.dtype, name="soft_attention"
        )(x, train=train)
        window, stride, padding = self.pool
        pooled = [
            max_pool(each, (window, window), (stride, stride), padding)
            for each in (x.astype(self.dtype), attended)
        ]
        x = nn.relu(jnp.concatenate(pooled, axis=-1))
        return nn.Dropout(self.dropout_rate, deterministic=not train)(x), maps


ATTENTION["soft"] = functools.partial(SoftAttention, variant="released")
ATTENTION["soft_paper"] = functools.partial(SoftAttention, variant="paper")
ATTENTION["soft_block"] = functools.partial(SoftAttentionBlock, variant="released")
ATTENTION["soft_paper_block"] = functools.partial(SoftAttentionBlock, variant="paper")
