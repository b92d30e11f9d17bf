"""ResNet-50 in plain Flax, layer by layer as a textbook writes it: what ours is compared with.

Strides are in the first 1×1 convolution and convolutions have a bias, as in Keras and in our
``keras_resnet50``, so that both compute the same; ``flax_resnet50_v15`` is the common variant with
strides in the 3×3 convolutions and no bias before a batch norm.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxattn.models.registry import MODELS, Model


class Bottleneck(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution, added to the input."""

    features: int
    stride: int
    project: bool
    v15: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Applies the block."""
        conv = functools.partial(nn.Conv, use_bias=not self.v15, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, epsilon=1.001e-5, dtype=self.dtype
        )
        first, middle = (1, self.stride) if self.v15 else (self.stride, 1)
        y = nn.relu(norm()(conv(self.features, (1, 1), first)(x)))
        y = nn.relu(norm()(conv(self.features, (3, 3), middle)(y)))
        y = norm()(conv(4 * self.features, (1, 1))(y))
        if self.project:
            x = norm()(conv(4 * self.features, (1, 1), self.stride)(x))
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """The classifier; images are normalised."""

    num_classes: int
    dtype: Any = jnp.float32
    v15: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict]:
        """Returns float32 logits, and no maps."""
        x = nn.Conv(64, (7, 7), 2, padding=3, use_bias=not self.v15, dtype=self.dtype)(images)
        norm = nn.BatchNorm(use_running_average=not train, epsilon=1.001e-5, dtype=self.dtype)
        x = nn.max_pool(nn.relu(norm(x)), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                block_of = Bottleneck(64 * 2**stage, stride, not block, self.v15, self.dtype)
                x = block_of(x, train=train)
        return nn.Dense(self.num_classes)(x.astype(jnp.float32).mean((1, 2))), {}


MODELS["flax_resnet50"] = Model(ResNet50, 224, {"v15": False}, "caffe", 1000)
MODELS["flax_resnet50_v15"] = Model(ResNet50, 224, {"v15": True}, "imagenet", 1000)
