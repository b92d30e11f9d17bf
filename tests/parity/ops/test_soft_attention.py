import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.ops import soft_attention as ops


def loop_logits(x, kernel):
    """The released convolution, tap by tap, from TensorFlow's definition of SAME padding."""
    B, H, W, C = x.shape
    before = (C - 1) // 2
    channel_before = max(3 - C, 0) // 2
    out = np.zeros((B, kernel.shape[-1], H, W))
    for h, w in np.ndindex(H, W):
        for i, j, d in np.ndindex(C, 3, 3):
            row, column, channel = h + i - before, w + j - 1, d - channel_before
            if 0 <= row < H and 0 <= column < W and 0 <= channel < C:
                out[:, :, h, w] += x[:, row, column, channel, None] * kernel[i, j, d, 0]
    return out


def loop_softmax(logits):
    e = np.exp(logits - logits.max((2, 3), keepdims=True))
    return e / e.sum((2, 3), keepdims=True)


def case(shape, heads, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    kernel = rng.normal(size=(shape[-1], 3, 3, 1, heads)) * 0.3
    bias = rng.normal(size=heads) * 0.3
    return x, kernel, bias


def close(got, wanted, tolerance=1e-5):
    wanted = np.asarray(wanted, np.float64)
    error = np.abs(np.asarray(got, np.float64) - wanted).max()
    assert error <= tolerance * np.abs(wanted).max(), error


# Channels: one and two (SAME pads them), fewer and more than 2H - 1, odd and even; H != W.
SHAPES = [(2, 4, 4, 1), (2, 4, 3, 2), (2, 5, 3, 3), (1, 6, 4, 4), (2, 3, 7, 12), (2, 1, 1, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("logits", [ops.released_logits, ops.released_logits_conv3d])
def test_released_logits_meet_the_loops(shape, logits):
    x, kernel, _ = case(shape, 3)
    close(logits(jnp.float32(x), jnp.float32(kernel)), loop_logits(x, kernel))


@pytest.mark.parametrize("shape", SHAPES)
def test_fast_logits_have_the_gradients_of_the_definition(shape):
    x, kernel, _ = case(shape, 2)
    args = jnp.float32(x), jnp.float32(kernel)
    cotangent = jnp.float32(np.random.default_rng(1).normal(size=(shape[0], 2, *shape[1:3])))
    got = jax.vjp(ops.released_logits, *args)[1](cotangent)
    wanted = jax.vjp(ops.released_logits_conv3d, *args)[1](cotangent)
    for g, w in zip(got, wanted, strict=True):
        close(g, w)


@pytest.mark.parametrize("shape", [(2, 4, 3, 2), (2, 3, 5, 8)])
def test_released_attention_meets_the_loops(shape):
    x, kernel, bias = case(shape, 3)
    args = [jnp.float32(a) for a in (x, kernel, bias)]
    maps = loop_softmax(np.maximum(loop_logits(x, kernel) + bias[:, None, None], 0))
    out, got_maps = ops.released_soft_attention(*args)
    close(got_maps, maps)
    close(out, maps.sum(1)[..., None] * x)

    separate, got_maps = ops.released_soft_attention(*args, aggregate=False)
    close(got_maps, maps)
    close(separate, np.concatenate([maps[:, k, :, :, None] * x for k in range(3)], axis=-1))


def test_released_attention_reads_three_channels_and_the_central_rows():
    x, kernel, bias = (jnp.float32(a) for a in case((2, 4, 5, 16), 3))
    weights = jnp.float32(np.random.default_rng(2).normal(size=(2, 3, 4, 5)))

    def loss(x, kernel):
        return (ops.released_soft_attention(x, kernel, bias)[1] * weights).sum()

    grad_x, grad_kernel = jax.grad(loss, argnums=(0, 1))(x, kernel)
    assert [c for c in range(16) if np.any(grad_x[..., c])] == [0, 1, 2]
    # 7 rows before the map's first row: rows 7 - 3 to 7 + 3 of the kernel can meet its four rows.
    assert [i for i in range(16) if np.any(grad_kernel[i])] == list(range(4, 11))


def test_paper_attention_meets_the_loops():
    rng = np.random.default_rng(3)
    x, kernel = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(3, 3, 5, 2))
    logits = np.zeros((2, 2, 3, 4))
    for h, w, i, j in np.ndindex(3, 4, 3, 3):
        if 0 <= h + i - 1 < 3 and 0 <= w + j - 1 < 4:
            logits[:, :, h, w] += x[:, h + i - 1, w + j - 1] @ kernel[i, j]
    out, maps = ops.paper_soft_attention(jnp.float32(x), jnp.float32(kernel), jnp.float32(0.7))
    close(maps, loop_softmax(logits))
    close(out, 0.7 * x * loop_softmax(logits).sum(1)[..., None])


def test_bfloat16_features_keep_float32_maps():
    x, kernel, bias = case((2, 6, 5, 9), 4)
    x = jnp.asarray(x, jnp.bfloat16)
    rounded = np.asarray(x, np.float64)
    maps = loop_softmax(np.maximum(loop_logits(rounded, kernel) + bias[:, None, None], 0))
    out, got = ops.released_soft_attention(x, jnp.float32(kernel), jnp.float32(bias))
    assert out.dtype == jnp.bfloat16
    assert got.dtype == jnp.float32
    close(got, maps)
    close(out, maps.sum(1)[..., None] * rounded, 2**-8)


@pytest.mark.parametrize("name", ["irv2", "cnn_sa", "rect"])
def test_released_attention_meets_the_golden_vectors(name):
    if "JAXATTN_GOLDEN" not in os.environ:
        pytest.skip("JAXATTN_GOLDEN does not name the folder of golden vectors")
    path = pathlib.Path(os.environ["JAXATTN_GOLDEN"]) / "soft_attention_published.npz"
    with np.load(path) as file:
        golden = {key: file[f"{name}/{key}"] for key in (
            "x", "kernel", "bias", "out", "maps", "cotangent", "grad_x", "grad_kernel", "grad_bias"
        )}  # fmt: skip
    args = [jnp.asarray(golden[key]) for key in ("x", "kernel", "bias")]
    (out, maps), vjp = jax.vjp(ops.released_soft_attention, *args)
    close(out, golden["out"])
    close(maps, golden["maps"])
    grads = vjp((jnp.asarray(golden["cotangent"]), jnp.zeros_like(maps)))
    for key, grad in zip(("grad_x", "grad_kernel", "grad_bias"), grads, strict=True):
        close(grad, golden[key])
