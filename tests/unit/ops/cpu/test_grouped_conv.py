"""Grouped and depthwise convolutions against ``lax``'s: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxattn.models.layers import Conv
from jaxattn.ops.conv import conv_general_dilated

CASES = [
    ((3, 3, 2, 12), 4, (1, 1), "SAME"),
    ((3, 3, 2, 12), 4, (2, 2), ((1, 1), (1, 1))),
    ((3, 3, 2, 8), 4, (2, 1), "VALID"),
    ((1, 1, 4, 6), 2, (1, 1), "VALID"),
    ((2, 3, 1, 8), 8, (1, 2), ((0, 2), (-1, 1))),
    ((3, 3, 1, 5), 5, (1, 1), "SAME"),
    ((5, 5, 1, 5), 5, (2, 2), "SAME"),
    ((5, 3, 1, 4), 4, (2, 3), "VALID"),
    ((3, 3, 1, 4), 4, (2, 2), ((1, 1), (1, 1))),
    ((3, 3, 1, 8), 4, (1, 1), "SAME"),
]


@pytest.mark.parametrize(("kernel_shape", "groups", "strides", "padding"), CASES)
def test_values_and_gradients_are_those_of_lax(kernel_shape, groups, strides, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 7, 6, groups * kernel_shape[2])), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=kernel_shape), jnp.float32)

    def wanted(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, strides, padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    def ours(x, kernel):
        return conv_general_dilated(x, kernel, strides, padding, feature_group_count=groups)

    (value, pull), (theirs, their_pull) = (jax.vjp(f, x, kernel) for f in (ours, wanted))
    np.testing.assert_allclose(value, theirs, rtol=1e-4, atol=1e-4)
    cotangent = jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape)
    for got, want in zip(pull(cotangent), their_pull(cotangent), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [4, 8])
def test_a_layer_in_groups_takes_it_on_a_cpu(groups):
    """No grouped convolution is left in the program that a CPU runs."""
    x = jnp.ones((1, 8, 8, 8))
    layer = Conv(8, (3, 3), feature_group_count=groups)
    variables = layer.init(jax.random.key(0), x)
    program = jax.jit(layer.apply).lower(variables, x).compile().as_text()
    assert "feature_group_count" not in program
    plain = nn.Conv(8, (3, 3), feature_group_count=groups).apply(variables, x)
    np.testing.assert_allclose(layer.apply(variables, x), plain, atol=1e-5)
