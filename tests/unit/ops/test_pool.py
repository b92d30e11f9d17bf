"""Max pooling against Flax's, and its gradient against a search for the maxima in loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from jaxattn.ops.pool import max_pool

# Windows that overlap, touch or leave pixels out; sides that leave rows over; padding of all kinds.
CASES = [
    ((9, 8), (3, 3), (2, 2), "VALID"),
    ((9, 8), (3, 3), (2, 2), "SAME"),
    ((8, 8), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((9, 8), (3, 3), (2, 2), ((0, 1), (1, 0))),
    ((9, 8), (2, 2), (2, 2), "SAME"),
    ((9, 9), (3, 3), (1, 1), "VALID"),
    ((9, 8), (4, 4), (4, 4), "SAME"),
    ((7, 7), (1, 1), (1, 1), "VALID"),
    ((11, 11), (2, 3), (3, 2), "VALID"),
]


def images(shape, ties):
    rng = np.random.default_rng(0)
    shape = (2, *shape, 3)
    drawn = rng.integers(-3, 3, shape) if ties else rng.standard_normal(shape)
    return drawn.astype(np.float32)


def value_and_gradient(function, x):
    value, transpose = jax.vjp(function, x)
    weights = 1 + jnp.arange(value.size, dtype=value.dtype).reshape(value.shape)
    return value, transpose(weights)[0]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("shape", "window", "strides", "padding"), CASES)
def test_values_and_gradients_are_those_of_flax(shape, window, strides, padding, ties):
    x = images(shape, ties)
    ours = lambda x: max_pool(x, window, strides, padding)  # noqa: E731
    flax = lambda x: nn.max_pool(x, window, strides=strides, padding=padding)  # noqa: E731
    got = jax.jit(lambda x: value_and_gradient(ours, x))(x)
    wanted = jax.jit(lambda x: value_and_gradient(flax, x))(x)
    for g, w in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("ties", [False, True])
def test_the_first_of_equal_maxima_has_the_gradient(ties):
    x = images((7, 6), ties)
    _, got = jax.jit(
        lambda x: value_and_gradient(lambda x: max_pool(x, (3, 3), (2, 2), "VALID"), x)
    )(x)
    wanted = np.zeros_like(x)
    places = itertools.product(range(2), range(3), range(2), range(3))
    for weight, (n, i, j, c) in enumerate(places, 1):
        window = x[n, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
        row, column = divmod(int(window.argmax()), 3)
        wanted[n, 2 * i + row, 2 * j + column, c] += weight
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("platform", "searches"), [("cpu", 0), ("cuda", 0), ("tpu", 1)])
def test_no_search_for_the_maxima_is_left_where_it_is_slow(platform, searches):
    x = images((8, 8), False)

    def lowered(pool):
        gradient = jax.jit(jax.grad(lambda x: pool(x).sum()))
        return export.export(gradient, platforms=[platform])(x).mlir_module()

    ours = lowered(lambda x: max_pool(x, (2, 2), (2, 2), "VALID"))
    assert ours.count('"stablehlo.select_and_scatter"') == searches
    flax = lowered(lambda x: nn.max_pool(x, (2, 2), strides=(2, 2)))
    assert flax.count('"stablehlo.select_and_scatter"') == 1


def test_half_precision_stays_half():
    x = jnp.asarray(images((8, 8), False), jnp.bfloat16)
    value, gradient = value_and_gradient(lambda x: max_pool(x, (3, 3), (2, 2), "SAME"), x)
    assert value.dtype == gradient.dtype == jnp.bfloat16
