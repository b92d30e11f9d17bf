"""Soft-Attention of Datta et al. 2021: the paper's equation, and the layer that was released.

The paper (arXiv:2105.03358, equation 1) turns a feature tensor t into K maps, each a softmax over
positions of a convolution W_k * t over all channels, and returns γ · t · Σ_k map_k.

The layer that the authors released, with which the published numbers were made, differs:

* It has no γ, but a bias and a ReLU before the softmax.
* Its 3-D convolution sees t as ``(H, W, C, 1)`` with a kernel ``(C, 3, 3, 1, K)``, strides
  ``(1, 1, C)`` and SAME padding. The kernel's first axis, of length C, therefore runs along the
  *height*, and its third, of length 3, along the channels, where it is applied only once. So the
  maps depend on channels 0, 1 and 2 alone.
* Along the height the C taps are centred (``(C - 1) // 2`` rows of padding before), so only the
  central 2H - 1 rows of the kernel ever meet data. The others never receive a gradient.

The released kernel is stored whole, so that published weights convert both ways unchanged, but the
convolution is computed as the small dense product that it equals.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxattn.ops.cpu.paper_logits import shifted_products, shifted_products_gradients


def released_logits_conv3d(
    x: Float[Array, "B H W C"], kernel: Float[Array, "C 3 3 1 K"]
) -> Float[Array, "B K H W"]:
    """The released convolution as it was written; the definition of ``released_logits``.

    Args:
        x: Features, any float dtype.
        kernel: The layer's kernel.

    Returns:
        The convolution before bias and ReLU, float32.
    """
    logits = lax.conv_general_dilated(
        x.astype(jnp.float32)[..., None],
        kernel.astype(jnp.float32),
        window_strides=(1, 1, x.shape[-1]),
        padding="SAME",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    return jnp.transpose(logits[:, :, :, 0], (0, 3, 1, 2))


def released_logits(
    x: Float[Array, "B H W C"], kernel: Float[Array, "C 3 3 1 K"]
) -> Float[Array, "B K H W"]:
    """``released_logits_conv3d`` as one dense product along the height, on every backend.

    The factors are the ``(B W, 9 H)`` windows of the channels that are read, and a ``(9 H, H K)``
    Toeplitz matrix of the kernel rows that meet data. Their layouts avoid copies: on a CPU this is
    a quarter faster than the equivalent einsum.

    Args:
        x: Features, any float dtype; only channels 0, 1, 2 are read.
        kernel: The layer's kernel.

    Returns:
        The convolution before bias and ReLU, float32.
    """
    batch, height, width, _ = x.shape
    # Rows and channels are one axis from the start: a TPU pads an axis of three channels to 128.
    read = x[..., :3].astype(jnp.float32).swapaxes(1, 2).reshape(batch, width, -1)
    padded = jnp.pad(read, ((0, 0), (1, 1), (0, 0)))
    windows = jnp.stack([padded[:, j : j + width] for j in range(3)], axis=2)  # b w j rc
    matrix = _toeplitz(_reachable(kernel.astype(jnp.float32), height), height)  # h r j c k
    terms = windows[0, 0].size
    matrix = matrix.transpose(2, 1, 3, 0, 4).reshape(terms, -1)
    logits = windows.reshape(-1, terms) @ matrix
    return logits.reshape(batch, width, height, -1).transpose(0, 3, 2, 1)


def _reachable(kernel: Float[Array, "C 3 3 1 K"], height: int) -> Float[Array, "R 3 c K"]:
    """Kernel rows at offsets -(H - 1) to H - 1, R = 2H - 1, and the taps that meet a channel.

    Offsets beyond the kernel are zero. SAME padding with a stride of C pads 3 - C channels, half
    of them (rounded down) in front, so one channel meets the middle tap and two the first two.
    """
    channels = kernel.shape[0]
    before = (channels - 1) // 2
    first = 1 if channels == 1 else 0
    taps = kernel[:, :, first : first + min(channels, 3), 0]
    rows = (height - 1 - before, height - channels + before, 0)
    return lax.pad(taps, jnp.zeros((), taps.dtype), [rows, (0, 0, 0), (0, 0, 0), (0, 0, 0)])


def _toeplitz(rows: Float[Array, " R *tap"], height: int) -> Float[Array, " H H *tap"]:
    """``t[h, r] = rows[r - h + H - 1]``: what input row r contributes to output row h.

    Repeating the 2H - 1 rows with a period of 2H and cutting them every 2H - 1 shifts each row by
    one. Unlike a gather, this has no scatter in its gradient.
    """
    tap = rows.shape[1:]
    period = jnp.concatenate([rows, jnp.zeros_like(rows[:1])])
    repeated = jnp.broadcast_to(period, (height, *period.shape)).reshape(-1, *tap)
    return repeated[:-height].reshape(height, 2 * height - 1, *tap)[:, height - 1 :]


def paper_logits_conv(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C K"]
) -> Float[Array, "B K H W"]:
    """The paper's convolution, 3×3 over all channels with SAME padding: its definition.

    Args:
        x: Features, any float dtype.
        kernel: The layer's kernel.

    Returns:
        The convolution, float32, rounded to the dtype of x first.
    """
    logits = lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return logits.transpose(0, 3, 1, 2).astype(jnp.float32)


@jax.custom_vjp
def paper_logits(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C K"]
) -> Float[Array, "B K H W"]:
    """``paper_logits_conv``; on a CPU as matrix products (`jaxattn.ops.cpu.paper_logits`).

    Only reverse-mode differentiation works.

    Args:
        x: Features, any float dtype.
        kernel: The layer's kernel.

    Returns:
        The convolution, float32; except on a CPU, rounded to the dtype of x first.
    """
    return lax.platform_dependent(x, kernel, cpu=shifted_products, default=paper_logits_conv)


def _paper_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return paper_logits(x, kernel), (x, kernel)


def _paper_backward(
    residuals: tuple[Array, Array], gradient: Float[Array, "B K H W"]
) -> tuple[Array, Array]:
    def default(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        return jax.vjp(paper_logits_conv, x, kernel)[1](gradient)

    return lax.platform_dependent(
        *residuals, gradient, cpu=shifted_products_gradients, default=default
    )


paper_logits.defvjp(_paper_forward, _paper_backward)


def position_softmax(logits: Float[Array, "B K H W"]) -> Float[Array, "B K H W"]:
    """Softmax over the positions, separately for each image and head, in float32."""
    flat = logits.astype(jnp.float32).reshape(*logits.shape[:2], -1)
    return jax.nn.softmax(flat, axis=-1).reshape(logits.shape)


def released_soft_attention(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "C 3 3 1 K"],
    bias: Float[Array, " K"],
    *,
    aggregate: bool = True,
) -> tuple[Float[Array, "B H W D"], Float[Array, "B K H W"]]:
    """Soft-Attention as released.

    Args:
        x: Features, any float dtype.
        kernel: The layer's kernel.
        bias: One per head.
        aggregate: Whether to sum the heads' maps. If not, each head's map weighs x separately.

    Returns:
        Attended features of the dtype of x, and the maps, float32, each summing to 1 over
        positions. D is C if aggregated; else K C, head 0's C channels first.
    """
    logits = released_logits(x, kernel) + bias.reshape(1, -1, 1, 1)
    maps = position_softmax(jax.nn.relu(logits))
    if aggregate:
        return _weigh(x, maps), maps
    heads = maps.transpose(0, 2, 3, 1)[..., None] * x.astype(maps.dtype)[..., None, :]
    return heads.reshape(*x.shape[:3], -1).astype(x.dtype), maps


def paper_soft_attention(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C K"], gamma: Float[Array, ""]
) -> tuple[Float[Array, "B H W C"], Float[Array, "B K H W"]]:
    """Soft-Attention as in the paper: γ · x · Σ_k softmax(W_k * x), equation 1.

    Args:
        x: Features, any float dtype.
        kernel: K filters over all channels, SAME padding, neither bias nor ReLU.
        gamma: Scale of the attended features.

    Returns:
        Attended features of the dtype of x, and the maps, float32, each summing to 1 over
        positions.
    """
    maps = position_softmax(paper_logits(x, kernel))
    return _weigh(x, gamma * maps), maps


def _weigh(x: Float[Array, "B H W C"], maps: Float[Array, "B K H W"]) -> Float[Array, "B H W C"]:
    """The sum of the maps times x, in float32, rounded once to the dtype of x.

    The sum is a product with ones, because XLA's CPU backend writes a reduction out once per
    channel if the gradient needs it too, and then reads that twice.
    """
    ones = jnp.ones(maps.shape[1], maps.dtype)
    weights = jnp.einsum("bkhw,k->bhw", maps, ones, precision=lax.Precision.HIGHEST)
    return (x.astype(maps.dtype) * weights[..., None]).astype(x.dtype)
