import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxattn.models.layers import BatchNorm, Conv, ConvBN


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (1, 1)},
        {"kernel_size": (1, 1), "padding": "VALID", "use_bias": False},
        {"kernel_size": (1, 1), "strides": (2, 2)},
        {"kernel_size": (1, 1), "padding": ((1, 1), (0, 2))},
        {"kernel_size": (1, 1), "feature_group_count": 2},
        {"kernel_size": (3, 1), "strides": (2, 1)},
    ],
)
def test_conv_is_linens_conv(options):
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, 4))
    ours, linens = Conv(8, **options), nn.Conv(8, **options)
    variables = jax.jit(ours.init)(jax.random.key(0), x)
    expected = jax.eval_shape(linens.init, jax.random.key(0), x)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, expected)
    got, wanted = (
        jax.jit(jax.value_and_grad(lambda v, m=m: (m.apply(v, x) ** 2).sum()))(variables)
        for m in (ours, linens)
    )
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4), got, wanted)


class Plain(nn.Module):
    """``ConvBN`` with the bias's gradient by automatic differentiation."""

    @nn.compact
    def __call__(self, x, *, train):
        x = Conv(8, (3, 3), name="conv")(x)
        return nn.relu(BatchNorm(not train, epsilon=1e-3, name="bn")(x))


@pytest.mark.parametrize("train", [True, False])
def test_a_bias_before_batch_norm_costs_no_gradient_in_training(train):
    """Outputs and statistics are the same bits; the gradient left out is zero but for rounding."""
    x = jax.random.normal(jax.random.key(1), (4, 6, 6, 3))
    plain, ours = Plain(), ConvBN(8, (3, 3), use_bias=True)
    variables = plain.init(jax.random.key(0), x, train=False)
    variables["params"]["conv"]["bias"] = jax.random.normal(jax.random.key(2), (8,))
    variables["params"]["bn"]["scale"] = 1 + jax.random.uniform(jax.random.key(3), (8,))

    def run(model):
        def loss(params):
            given = {**variables, "params": params}
            y, changed = model.apply(given, x, train=train, mutable=["batch_stats"])
            return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum(), (y, changed)

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    (gradients, outputs), (wanted, expected) = run(ours), run(plain)
    jax.tree.map(np.testing.assert_array_equal, outputs, expected)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=1e-4), gradients, wanted)
    assert np.any(gradients["conv"]["bias"]) == (not train)
    if train:  # the running mean has moved by a hundredth of the biased batch's mean
        bias = variables["params"]["conv"]["bias"]
        without = {"kernel": variables["params"]["conv"]["kernel"], "bias": 0 * bias}
        mean = nn.Conv(8, (3, 3)).apply({"params": without}, x).mean((0, 1, 2)) + bias
        np.testing.assert_allclose(
            outputs[1]["batch_stats"]["bn"]["mean"], 0.01 * mean, rtol=1e-4, atol=1e-6
        )
