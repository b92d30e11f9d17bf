"""The attention gate of Yan et al. 2019, section 2.1, between any two endpoints of a backbone.

Every position of a local endpoint is weighed by how its features fit those of a global one, which
is coarser and knows what the image shows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.errors import InputError, suggestion
from jaxattn.models.layers import Conv
from jaxattn.models.vgg_bn import HE_FAN_IN

NORMALISATIONS = ("sigmoid", "softmax")


def upsample(x: Float[Array, "B H W C"], height: int, width: int) -> Float[Array, "B h w C"]:
    """Bilinear interpolation with half-pixel centres (PyTorch's ``align_corners=False``)."""
    shape = (x.shape[0], height, width, x.shape[3])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


class AttentionGate(nn.Module):
    """Weighs the positions of local features under the guidance of global ones.

    ``R = W ∗ ReLU(W_f ∗ F + up(W_g ∗ G))`` (equation 1), where ∗ are 1×1 convolutions, of which the
    last alone has a bias, and ``up`` is bilinear.

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
            raise InputError(
                f"normalise: {self.normalise!r} given{suggestion(self.normalise, NORMALISATIONS)}"
            )
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
