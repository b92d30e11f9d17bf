"""A small residual network with Soft-Attention, for small images and machines without a GPU.

The attention is that of the paper of Datta et al. 2021 (equation 1 and Fig. 4). The backbone is a
residual network (He et al. 2016) small enough to train on two CPU cores in a quarter of an hour at
64×64 pixels.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.models.attention.soft import SoftAttentionBlock
from jaxattn.models.layers import Conv
from jaxattn.models.registry import MODELS, Model


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: ``relu(shortcut(x) + f(x))``.

    Where the shape changes, the shortcut is average pooling, a 1×1 convolution and batch norm (the
    pooling of He et al. 2019, ResNet-D, which drops no pixel).

    Attributes:
        channels: Channels of the output.
        stride: Of the first convolution.
        dtype: Type of the activations.
    """

    channels: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool
    ) -> Float[Array, "B h w {self.channels}"]:
        """Applies the block; batch norm is of this batch where ``train``."""
        strides = (self.stride, self.stride)
        y = _conv(self.channels, 3, strides, self.dtype, "conv1")(x)
        y = nn.relu(_norm(train, self.dtype, "norm1")(y))
        y = _conv(self.channels, 3, (1, 1), self.dtype, "conv2")(y)
        # A small scale: each block starts near its shortcut, which steadies a high learning rate.
        y = _norm(train, self.dtype, "norm2", scale=0.3)(y)
        if x.shape != y.shape:
            x = nn.avg_pool(x, strides, strides, padding="SAME") if self.stride > 1 else x
            x = _conv(self.channels, 1, (1, 1), self.dtype, "conv_shortcut")(x)
            x = _norm(train, self.dtype, "norm_shortcut")(x)
        return nn.relu(x + y)


class AttentionCNN(nn.Module):
    """Residual network whose last stage sees what Soft-Attention dwells on.

    At 64×64 and the default width::

        2×2 pixels to channels                             32×32×12
        3×3 convolution, batch norm, ReLU                  32×32×24
        1 residual block, stride 2                         16×16×48
        2 residual blocks, the first of stride 2             8×8×96
        Soft-Attention (16 maps of 8×8), max pooling,
          features beside attended features                4×4×192
        1 residual block                                   4×4×192
        mean over positions, dropout, dense

    Any image size works that leaves the maps more than one position; they are an eighth of the
    image in height and width.

    Attributes:
        num_classes: Number of logits.
        width: Channels after the stem; each stage doubles them.
        blocks: Residual blocks of the two stages before attention and of the one after it.
        heads: K, the number of attention maps.
        dropout_rate: Share of the pooled features dropped in training.
        dtype: Type of the activations.
    """

    num_classes: int
    width: int = 24
    blocks: Sequence[int] = (1, 2, 1)
    heads: int = 16
    dropout_rate: float = 0.2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool
    ) -> tuple[Float[Array, "B {self.num_classes}"], dict[str, Float[Array, "B K h w"]]]:
        """Classifies.

        Args:
            images: Normalised images.
            train: Use this batch's statistics, and drop features with the random stream
                ``dropout``.

        Returns:
            Float32 logits, and the maps ``soft_attention``, each of sum 1 over positions.
        """
        before, between, after = self.blocks
        x = _space_to_depth(images.astype(self.dtype))
        x = _conv(self.width, 3, (1, 1), self.dtype, "conv_stem")(x)
        x = nn.relu(_norm(train, self.dtype, "norm_stem")(x))
        for stage, depth in ((1, before), (2, between)):
            for index in range(depth):
                x = ResidualBlock(
                    self.width * 2**stage,
                    stride=2 if index == 0 else 1,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{index + 1}",
                )(x, train=train)
        x, maps = SoftAttentionBlock(
            self.heads, "paper", dropout_rate=0.0, dtype=self.dtype, name="attention"
        )(x, train=train)
        for index in range(after):
            x = ResidualBlock(self.width * 8, dtype=self.dtype, name=f"stage3_block{index + 1}")(
                x, train=train
            )
        x = x.mean((1, 2))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        logits = nn.Dense(self.num_classes, dtype=jnp.float32, name="logits")(x)
        return logits, {"soft_attention": maps}


def _space_to_depth(images: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 4*C"]:
    """Each 2×2 pixels as one, of four times the channels; a last odd row or column meets zeros.

    A stem of stride 2 over three channels is the slowest convolution of a small network on a CPU;
    over twelve channels and without stride it is as fast as any other.
    """
    batch, height, width, channels = images.shape
    images = jnp.pad(images, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    images = images.reshape(batch, -(-height // 2), 2, -(-width // 2), 2 * channels)
    return images.swapaxes(2, 3).reshape(batch, images.shape[1], images.shape[3], 4 * channels)


def _conv(channels: int, size: int, strides: tuple[int, int], dtype: Any, name: str) -> nn.Conv:
    return Conv(
        channels,
        (size, size),
        strides,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
        name=name,
    )


def _norm(train: bool, dtype: Any, name: str, scale: float = 1.0) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.95,
        scale_init=nn.initializers.constant(scale),
        dtype=dtype,
        name=name,
    )


MODELS["attention_cnn"] = Model(AttentionCNN, 64)
