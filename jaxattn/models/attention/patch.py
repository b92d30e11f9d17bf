"""Attention over the crops of an image (Gessert et al. 2019, section II-E).

The crops of a batch are folded into its first axis, the NC crops of an image one after the other:
``(B·NC, ...)``. So the modules fit after any layer of any network for single images.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.models.attention.registry import ATTENTION


@ATTENTION.register("patch")
class PatchAttention(nn.Module):
    """Weighs the crops of an image by each other's means (figure 3): ``σ(fc(mean(x))) x``.

    Attributes:
        crops: NC, crops of an image.
    """

    crops: int

    @nn.compact
    def __call__(
        self, x: Float[Array, " inputs *features"], *, train: bool
    ) -> tuple[Float[Array, " inputs *features"], Float[Array, "B {self.crops} 1 1"]]:
        """Attends.

        Args:
            x: Crops, their feature maps or their feature vectors; B·NC of them.
            train: Ignored.

        Returns:
            The crops, each times its weight, in the type of ``x``; and the weights of the crops of
            each image, float32 in (0, 1), as maps of one position.
        """
        del train
        means = x.astype(jnp.float32).reshape(x.shape[0], -1).mean(1).reshape(-1, self.crops)
        weights = nn.sigmoid(nn.Dense(self.crops, name="dense")(means))
        per_input = weights.reshape(-1, *(1 for _ in x.shape[1:]))
        return (x * per_input).astype(x.dtype), weights[..., None, None]


class GRUAggregation(nn.Module):
    """The last state of a gated recurrent unit that reads the crops in order: the paper's baseline.

    The equations are those of ``torch.nn.GRU``: the reset gate acts on the state after its matrix
    and bias. Torch's second biases of the reset and the update gate are one with the first here.

    Attributes:
        crops: NC, crops of an image.
        units: Size of the state.
        dtype: Type of the activations.
    """

    crops: int
    units: int = 1024
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "inputs F"]) -> Float[Array, "B {self.units}"]:
        """Reads the B·NC feature vectors; returns a vector for each image."""
        sequence = x.reshape(-1, self.crops, x.shape[-1])
        cell = nn.GRUCell(self.units, dtype=self.dtype, name="cell")
        state, _ = nn.RNN(cell, return_carry=True, name="rnn")(sequence)
        return state
