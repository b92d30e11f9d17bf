"""The least model and data set that tests and the programs they start share.

Importing it registers the model; commands take it with ``--plugin=tests.tiny``.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxattn.models import registry


class Noise(Sequence):
    """Records of random pixels, each a pure function of its row."""

    def __init__(self, count: int, size: int):
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int):
        if not 0 <= row < self.count:
            raise IndexError(row)
        pixels = np.random.default_rng(row).integers(0, 256, (self.size, self.size, 3), np.uint8)
        return {"image": pixels, "mask": (pixels[..., 0] > 128).astype(np.uint8)}


class Tiny(nn.Module):
    """A small classifier with all that a training step has to carry: statistics, dropout, maps."""

    num_classes: int
    dtype: Any = jnp.float32
    width: int = 8

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = nn.Conv(self.width, (3, 3), 2, dtype=self.dtype)(images)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
        x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
        scores = nn.Conv(2, (1, 1), dtype=self.dtype)(x).astype(jnp.float32)
        maps = nn.softmax(scores.reshape(x.shape[0], -1, 2), axis=1).reshape(scores.shape)
        pooled = jnp.einsum("bhwk,bhwc->bc", maps, x.astype(jnp.float32))
        logits = nn.Dense(self.num_classes)(jnp.concatenate([pooled, x.mean((1, 2))], -1))
        return logits, {"attention": maps.transpose(0, 3, 1, 2)}


registry.MODELS.setdefault("tiny", registry.Model(Tiny, 32))
