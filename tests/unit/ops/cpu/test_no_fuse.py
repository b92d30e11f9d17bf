"""Materialised values are the same, and on a CPU computed once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.ops.cpu.no_fuse import no_fuse
from jaxattn.runtime import compilation

ROWS, COLUMNS = 256, 64


def test_nothing_changes():
    def double(x):
        return no_fuse(2 * x)

    x = jnp.arange(12.0).reshape(3, 4)
    value, pull = jax.vjp(jax.jit(double), x)
    np.testing.assert_array_equal(value, 2 * x)
    np.testing.assert_array_equal(pull(x)[0], 2 * x)
    second = jax.grad(lambda x: jax.grad(lambda x: (no_fuse(x) ** 3).sum())(x).sum())
    np.testing.assert_array_equal(second(x), 6 * x)
    np.testing.assert_array_equal(jax.vmap(double)(x), 2 * x)


@pytest.mark.parametrize("blocks", [2, 8])
def test_a_residual_chain_is_computed_once(blocks):
    """Each block: a sum, a ReLU, and a product that uses it; two operations an element."""

    def network(x, branches, kernel):
        outputs = []
        for branch in branches:
            x = no_fuse(jax.nn.relu(x + branch))
            outputs.append(x @ kernel)
        return outputs

    x = jnp.ones((ROWS, COLUMNS))
    step = jax.jit(network, compiler_options=compilation.options("cpu"))
    compiled = step.lower(x, jnp.ones((blocks, *x.shape)), jnp.ones((COLUMNS, COLUMNS))).compile()
    products = 2 * ROWS * COLUMNS * COLUMNS
    assert compiled.cost_analysis()["flops"] == blocks * (products + 2 * ROWS * COLUMNS)
