import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxattn.models.attention_cnn import AttentionCNN, ResidualBlock

pytestmark = pytest.mark.usefixtures("mixed_dtypes")

# Here compiling costs far more than running.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=QUICK)


@pytest.fixture(scope="module")
def tiny():
    """A narrow network, its variables and four images."""
    model = AttentionCNN(num_classes=3, width=4, blocks=(1, 1, 1), heads=2, dropout_rate=0.0)
    images = jax.random.normal(jax.random.key(1), (4, 64, 64, 3))
    key = jax.random.key(0, impl="rbg")  # compiles quickly
    variables = jit(lambda key, x: model.init(key, x, train=False))(key, images)
    return model, variables, images


def test_parameter_count_by_hand():
    def block(channels_in, channels):
        convolutions = 9 * channels_in * channels + 9 * channels**2
        shortcut = channels_in * channels + 2 * channels if channels_in != channels else 0
        return convolutions + 2 * 2 * channels + shortcut

    stem = 3 * 3 * 12 * 24 + 2 * 24
    stages = block(24, 48) + block(48, 96) + block(96, 96) + block(192, 192)
    attention = 9 * 96 * 16 + 1
    head = 192 * 7 + 7
    shapes = jax.eval_shape(
        lambda: AttentionCNN(7).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == stem + stages + attention + head


@pytest.mark.parametrize(("size", "map_size"), [((64, 64), (8, 8)), ((96, 80), (12, 10))])
def test_maps_are_an_eighth_of_the_image(size, map_size):
    model = AttentionCNN(7)
    images = jnp.zeros((2, *size, 3))
    (logits, maps), _ = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images, train=False)
    )
    assert logits.shape == (2, 7)
    assert {name: each.shape for name, each in maps.items()} == {
        "soft_attention": (2, 16, *map_size)
    }


def test_maps_are_distributions_over_positions_that_follow_the_image(tiny):
    model, variables, images = tiny
    logits, maps = jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    maps = np.asarray(maps["soft_attention"])
    assert logits.dtype == maps.dtype == np.float32
    assert (maps >= 0).all()
    np.testing.assert_allclose(maps.sum((2, 3)), 1.0, rtol=1e-5)
    assert np.ptp(maps, axis=0).max() > 1e-4


def test_every_parameter_gets_a_gradient(tiny):
    model, variables, images = tiny

    @jit
    def gradients(variables):
        def loss(params):
            (logits, _), _ = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return (nn.log_softmax(logits)[:, 0]).mean()

        return jax.grad(loss)(variables["params"])

    flat = jax.tree_util.tree_leaves_with_path(gradients(variables))
    without = [jax.tree_util.keystr(path) for path, leaf in flat if not np.abs(leaf).max() > 0]
    assert without == []


def test_half_precision_keeps_parameters_logits_and_maps_single(tiny):
    model, variables, images = tiny
    half = model.clone(dtype=jnp.bfloat16)
    outputs, created = jax.eval_shape(
        lambda: half.init_with_output(jax.random.key(0), images, train=False)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, created))} == {jnp.dtype("float32")}
    got, _ = jit(lambda v, x: half.apply(v, x, train=False))(variables, images)
    wanted, _ = jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(got, wanted, atol=0.05 * np.abs(wanted).max())


def test_residual_block_without_its_branch_is_its_shortcut():
    block = ResidualBlock(4, stride=2)
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 4))
    variables = jit(lambda x: block.init(jax.random.key(0, impl="rbg"), x, train=False))(x)
    params = dict(variables["params"])
    params["norm2"] = jax.tree.map(jnp.zeros_like, params["norm2"])
    params["conv_shortcut"] = {"kernel": jnp.eye(4)[None, None]}
    got = jit(lambda v: block.apply(v, x, train=False))({**variables, "params": params})
    pooled = np.asarray(x).reshape(2, 3, 2, 3, 2, 4).mean((2, 4))
    # The running statistics start as mean 0 and variance 1.
    np.testing.assert_allclose(got, np.maximum(pooled, 0) / np.sqrt(1 + 1e-5), rtol=1e-4)
