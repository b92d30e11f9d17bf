"""The convolution against ``lax``, and against a convolution written out as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxattn.ops.conv import conv_general_dilated
from jaxattn.runtime import compilation

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def inputs(height, width, kernel_shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, height, width, kernel_shape[2])).astype(np.float32)
    kernel = rng.standard_normal(kernel_shape).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(kernel)


def value_and_gradients(function, x, kernel):
    value, transpose = jax.vjp(function, x, kernel)
    return value, *transpose(
        jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)
    )


# Products and convolutions; windows, strides, paddings that leave rows over.
CASES = [
    ((1, 1, 3, 4), (1, 1), "SAME"),
    ((1, 1, 3, 4), (2, 2), "VALID"),
    ((1, 1, 4, 3), (2, 3), "SAME"),
    ((1, 1, 3, 4), (1, 1), ((1, 0), (0, 2))),
    ((3, 3, 3, 4), (1, 1), "SAME"),
    ((3, 3, 3, 4), (1, 1), "VALID"),
    ((3, 3, 3, 4), (2, 2), "SAME"),
    ((3, 3, 3, 4), (2, 3), "VALID"),
    ((1, 7, 3, 4), (1, 1), "VALID"),
    ((2, 3, 3, 4), (1, 1), "VALID"),
    ((4, 4, 3, 4), (2, 2), "SAME"),
    ((5, 3, 3, 4), (2, 1), ((2, 0), (1, 3))),
    ((3, 3, 3, 4), (1, 1), ((-1, 0), (0, -2))),
    ((3, 3, 4, 3), (1, 1), "SAME"),
    ((3, 3, 4, 3), (1, 2), ((0, 1), (-1, 0))),
    ((2, 3, 4, 4), (1, 1), "VALID"),
]


@pytest.mark.parametrize(("kernel_shape", "strides", "padding"), CASES)
def test_values_and_gradients_are_those_of_lax(kernel_shape, strides, padding):
    x, kernel = inputs(9, 8, kernel_shape)
    ours = lambda x, k: conv_general_dilated(x, k, strides, padding)  # noqa: E731
    lax_conv = lambda x, k: lax.conv_general_dilated(  # noqa: E731
        x, k, strides, padding, dimension_numbers=DIMENSIONS
    )
    wanted = jax.jit(lambda x, k: value_and_gradients(lax_conv, x, k))(x, kernel)
    got = jax.jit(lambda x, k: value_and_gradients(ours, x, k))(x, kernel)
    for g, w in zip(got, wanted, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4)


def test_unpadded_convolution_written_out():
    x, kernel = inputs(6, 5, (3, 3, 2, 3))
    wanted = np.zeros((2, 4, 3, 3))
    for i in range(4):
        for j in range(3):
            window = np.asarray(x[:, i : i + 3, j : j + 3])
            wanted[:, i, j] = np.einsum("bhwc,hwcd->bd", window, kernel, dtype=np.float64)
    got = conv_general_dilated(x, kernel, (1, 1), "VALID")
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_pointwise_convolutions_are_products_forward_and_backward():
    x, kernel = inputs(4, 4, (1, 1, 3, 4))
    ours = lambda x, k: (conv_general_dilated(x, k, (2, 2), "VALID") ** 2).sum()  # noqa: E731
    program = jax.jit(jax.grad(ours, (0, 1))).lower(x, kernel).as_text()
    assert program.count("dot_general") == 3
    assert "convolution" not in program


def test_what_goes_into_a_product_is_computed_once():
    """Not once for the product and once, in another form, for the backward pass."""
    x, kernel = inputs(8, 8, (1, 1, 16, 8))

    def loss(x, kernel):
        return (conv_general_dilated(jnp.maximum(x, 0.5), kernel, (1, 1), "VALID") ** 2).sum()

    step = jax.jit(jax.grad(loss, 1), compiler_options=compilation.options("cpu"))
    assert step.lower(x, kernel).compile().as_text().count("maximum(") == 1


def test_grouped_and_dilated_convolutions_are_passed_on():
    x, kernel = inputs(6, 6, (3, 3, 2, 4))
    x = jnp.concatenate([x, x], axis=-1)
    options = {"feature_group_count": 2, "rhs_dilation": (2, 1)}
    got = conv_general_dilated(x, kernel, (1, 1), "SAME", **options)
    wanted = lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS, **options
    )
    np.testing.assert_array_equal(got, wanted)


def test_half_precision_stays_half():
    x, kernel = (jnp.asarray(each, jnp.bfloat16) for each in inputs(6, 6, (3, 3, 64, 64)))
    outputs = value_and_gradients(
        lambda x, k: conv_general_dilated(x, k, (1, 1), "VALID"), x, kernel
    )
    assert [each.dtype for each in outputs] == [jnp.bfloat16] * 3


def test_gradient_of_the_gradient():
    x, kernel = inputs(5, 5, (3, 3, 2, 2))

    def penalty(convolve):
        return lambda k: (jax.grad(lambda x: (convolve(x, k) ** 3).sum())(x) ** 2).sum()

    ours = penalty(lambda x, k: conv_general_dilated(x, k, (1, 1), "VALID"))
    lax_conv = penalty(
        lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=DIMENSIONS)
    )
    np.testing.assert_allclose(jax.grad(ours)(kernel), jax.grad(lax_conv)(kernel), rtol=1e-3)
