"""Squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507): attention over channels."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.models.attention.registry import ATTENTION


@ATTENTION.register("se")
class SqueezeExcite(nn.Module):
    """Scales each channel by a function of all channels' means (equations 2 to 4).

    Attributes:
        reduction: Channels over hidden units.
        dtype: Type of the activations.
    """

    reduction: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool
    ) -> tuple[Float[Array, "B H W C"], None]:
        """Returns the scaled features; there is no map over positions."""
        del train
        means = x.astype(jnp.float32).mean((1, 2)).astype(self.dtype)
        hidden = nn.Dense(x.shape[-1] // self.reduction, dtype=self.dtype, name="fc1")(means)
        scale = nn.sigmoid(nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(nn.relu(hidden)))
        return x * scale[:, None, None], None
