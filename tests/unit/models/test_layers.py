import jax
import numpy as np
import pytest
from flax import linen as nn

from jaxattn.models.layers import Conv


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
