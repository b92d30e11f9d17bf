"""Batch norm against that of Flax, by automatic differentiation, and against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxattn.errors import InputError
from jaxattn.models.layers import BatchNorm, batch_norm_groups
from jaxattn.ops.batch_norm import batch_norm

SHAPE = (4, 7, 5, 6)
EPSILON = 1e-3


def features(spread: float = 2.0, mean: float = 3.0) -> np.ndarray:
    return (np.random.RandomState(0).randn(*SHAPE) * spread + mean).astype(np.float32)


def outcome(module, variables, x):
    """Values, statistics, and gradients of a sum that all of them are in."""
    weights = np.random.RandomState(1).randn(*SHAPE).astype(np.float32)

    def total(variables, x):
        y, state = module.apply(variables, x, mutable=["batch_stats"])
        stats = sum((leaf * jnp.arange(6.0)).sum() for leaf in jax.tree.leaves(state))
        return (y.astype(jnp.float32) * weights).sum() + 100 * stats, (y, state)

    return jax.value_and_grad(total, (0, 1), has_aux=True)(variables, x)


def pair(train: bool, use_scale: bool, dtype=jnp.float32):
    given = dict(momentum=0.9, epsilon=EPSILON, use_scale=use_scale, dtype=dtype)
    modules = [kind(use_running_average=not train, **given) for kind in (nn.BatchNorm, BatchNorm)]
    variables = [module.init(jax.random.key(0), jnp.zeros(SHAPE)) for module in modules]
    assert jax.tree.all(jax.tree.map(np.array_equal, *variables))
    random = np.random.RandomState(2)
    other = jax.tree.map(lambda v: (random.rand(*v.shape) + 0.5).astype(v.dtype), variables[0])
    return *modules, other


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_values_statistics_and_gradients_are_those_of_flax(train, use_scale):
    flax, ours, variables = pair(train, use_scale)
    expected, got = (outcome(module, variables, features()) for module in (flax, ours))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), expected, got)


def test_groups_are_normalised_each_by_itself():
    """As Flax normalises one half after the other; the running statistics are their mean."""
    flax, ours, variables = pair(True, True)
    x = features() * np.arange(1.0, 5.0, dtype=np.float32).reshape(4, 1, 1, 1)
    weights = np.random.RandomState(1).randn(*SHAPE).astype(np.float32)

    def of_halves(variables, x):
        parts = (x[:2], x[2:])
        found = [flax.apply(variables, part, mutable=["batch_stats"]) for part in parts]
        y = jnp.concatenate([y for y, _ in found])
        stats = jax.tree.map(lambda a, b: (a + b) / 2, *(stats for _, stats in found))
        return (y * weights).sum(), (y, stats)

    def of_groups(variables, x):
        with batch_norm_groups(2):
            y, stats = ours.apply(variables, x, mutable=["batch_stats"])
        return (y * weights).sum(), (y, stats)

    expected, got = (
        jax.value_and_grad(function, (0, 1), has_aux=True)(variables, x)
        for function in (of_halves, of_groups)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-5), expected, got)


def test_groups_of_flax_batch_norm_are_refused():
    flax, _, variables = pair(True, True)
    message = r"batch_norm_groups: expected 1 for this model, got 2, and .*Flax's"
    with batch_norm_groups(2), pytest.raises(InputError, match=message):
        flax.apply(variables, features(), mutable=["batch_stats"])


def test_bfloat16_has_float32_statistics():
    x = jnp.asarray(features(), jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # Flax's layer needs it
        flax, ours, variables = pair(True, True, jnp.bfloat16)
        (_, (expected, stats)), gradients = outcome(flax, variables, x)
    (_, (y, ours_stats)), ours_gradients = outcome(ours, variables, x)
    assert y.dtype == ours_gradients[1].dtype == jnp.bfloat16
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(ours_stats), strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(*(each.astype(np.float32) for each in (expected, y)), atol=2e-2)
    np.testing.assert_allclose(
        *(each[1].astype(np.float32) for each in (gradients, ours_gradients)), rtol=2e-2, atol=2e-2
    )


def test_a_constant_channel_has_the_gradient_of_flax():
    x = features()
    x[..., 2] = 1.1  # rounding makes its variance less than nothing, or none
    flax, ours, variables = pair(True, True)
    expected, got = (outcome(module, variables, x)[1] for module in (flax, ours))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), expected, got)


@pytest.mark.parametrize("mean", [0.0, 10.0])
def test_gradients_are_those_of_pytorch(mean):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, weights = features(mean=mean), np.random.RandomState(1).randn(*SHAPE).astype(np.float32)
    scale, bias = np.random.RandomState(2).rand(2, 6).astype(np.float32) + 0.5

    leaves = [
        torch.tensor(each.astype(np.float64), requires_grad=True) for each in (x, scale, bias)
    ]
    norm = torch.nn.functional.batch_norm(
        leaves[0].permute(0, 3, 1, 2), None, None, *leaves[1:], training=True, eps=EPSILON
    )
    (norm.permute(0, 2, 3, 1) * torch.tensor(weights)).sum().backward()

    def total(x, scale, bias):
        return (batch_norm(x, scale, bias, EPSILON)[0] * weights).sum()

    got = jax.grad(total, (0, 1, 2))(*map(jnp.asarray, (x, scale, bias)))
    for leaf, ours in zip(leaves, got, strict=True):
        np.testing.assert_allclose(leaf.grad, ours, rtol=2e-4, atol=2e-4)
