"""Some layers of Flax mix types; the tests of models that have them allow it."""

import jax
import pytest


@pytest.fixture
def mixed_dtypes(strict_promotion):
    """Allows implicit changes of type, but still no implicit broadcasting.

    Flax's ``avg_pool`` divides by an integer, and its batch norm subtracts float32 statistics from
    bfloat16 activations.
    """
    with jax.numpy_dtype_promotion("standard"):
        yield
