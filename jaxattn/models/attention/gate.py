"""The attention gate of Yan et al. 2019, section 2.1.

It weighs every position of local features by how they fit global ones, which are coarser and encode
what the whole image shows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.errors import unknown
from jaxattn.models.attention.registry import ATTENTION
from jaxattn.models.layers import HE_FAN_IN, Conv

NORMALISATIONS = ("sigmoid", "softmax")


def upsample(x: Float[Array, "B H W C"], height: int, width: int) -> Float[Array, "B h w C"]:
    """Bilinear interpolation with half-pixel centres (PyTorch's ``align_corners=False``)."""
    shape = (x.shape[0], height, width, x.shape[3])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


class AttentionGate(nn.Module):
    """Weighs the positions of local features under the guidance of global ones.

    ``R = W ∗ ReLU(W_f ∗ F + up(W_g ∗ G))`` (equation 1); ∗ are 1×1 convolutions, only the last one
    with a bias, and ``up`` is bilinear.

    Attributes:
        features: Channels of ``W_f`` and ``W_g``.
        normalise: ``'sigmoid'``: each position by itself (equation 2), the features' weighted sum
            divided by the number of positions; ``'softmax'``: weights of sum 1 over positions.
        dtype: Type of the convolutions; parameters, map and pooled features are float32.
    """

    features: int = 256
    normalise: str = "sigmoid"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, local: Float[Array, "B h w C"], guide: Float[Array, "B H W D"]
    ) -> tuple[Float[Array, "B C"], Float[Array, "B 1 h w"]]:
        """Pools the local features.

        Args:
            local: Features to weigh.
            guide: Global features, of any height and width.

        Returns:
            The pooled features (equation 3 and the average over positions), and the map: in (0, 1)
            with sigmoid, of sum 1 with softmax.

        Raises:
            InputError: Unknown ``normalise``.
        """
        if self.normalise not in NORMALISATIONS:
            raise unknown("normalise", self.normalise, NORMALISATIONS)
        height, width = local.shape[1:3]
        projected = self._conv("local", self.features)(local)
        projected += upsample(self._conv("guide", self.features)(guide), height, width)
        scores = self._conv("score", 1, use_bias=True)(nn.relu(projected)).astype(jnp.float32)
        if self.normalise == "sigmoid":
            attention = nn.sigmoid(scores)
            weights = attention / (height * width)
        else:
            weights = attention = nn.softmax(scores, axis=(1, 2))
        pooled = jnp.einsum("bhwk,bhwc->bc", weights, local.astype(jnp.float32))
        return pooled, attention.transpose(0, 3, 1, 2)

    def _conv(self, name: str, features: int, use_bias: bool = False) -> nn.Module:
        return Conv(
            features,
            (1, 1),
            use_bias=use_bias,
            kernel_init=HE_FAN_IN,
            dtype=self.dtype,
            name=name,
        )


@ATTENTION.register("gate")
class SelfGate(nn.Module):
    """An `AttentionGate` guided by the mean of the features it weighs, in place.

    The published gate is guided by a later endpoint and pools, see ``jaxattn.models.yan2019``; this
    one can follow any endpoint.

    Attributes:
        features: See `AttentionGate`.
        normalise: See `AttentionGate`; softmax weights are multiplied by the number of positions.
        dtype: Type of the activations.
    """

    features: int = 256
    normalise: str = "sigmoid"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], *, train: bool
    ) -> tuple[Float[Array, "B h w C"], Float[Array, "B 1 h w"]]:
        """Returns the weighed features and the map, see `AttentionGate`."""
        del train
        guide = x.mean((1, 2), keepdims=True)
        gate = AttentionGate(self.features, self.normalise, self.dtype, name="gate")
        _, maps = gate(x, guide)
        weights = maps if self.normalise == "sigmoid" else maps * (x.shape[1] * x.shape[2])
        return (x * weights[:, 0, :, :, None]).astype(x.dtype), maps
