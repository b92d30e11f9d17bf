"""The residual ReLU against Flax's; what it becomes for a GPU, by lowering for one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from jaxattn.ops.relu import residual_relu


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_those_of_flax(dtype):
    x = jnp.asarray([-2.0, -0.0, 0.0, 3.0, jnp.inf], dtype)
    weights = jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0], dtype)
    for ours, flax in zip(*(jax.vjp(relu, x) for relu in (residual_relu, nn.relu)), strict=True):
        got, wanted = (each(weights)[0] if callable(each) else each for each in (ours, flax))
        assert got.dtype == wanted.dtype == dtype
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("platform", "barriers"), [("cpu", 0), ("cuda", 1), ("tpu", 0)])
def test_only_a_gpu_keeps_the_result(platform, barriers):
    gradient = jax.jit(jax.grad(lambda x: residual_relu(x * 2).sum()))
    x = jax.ShapeDtypeStruct((4,), jnp.float32)
    text = export.export(gradient, platforms=[platform])(x).mlir_module()
    assert text.count("stablehlo.optimization_barrier") == barriers
