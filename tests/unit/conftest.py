"""Unit tests refuse implicit broadcasting and implicit changes of type."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion():
    """Arrays of different ranks, or of different dtypes, meet only where the code says how."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def mixed_dtypes(strict_promotion):
    """Allows implicit changes of type in tests of whole models, but no implicit broadcasting.

    Flax's ``avg_pool`` divides by integers, or bfloat16 by float32, and its batch norm subtracts
    float32 statistics from bfloat16 activations.
    """
    with jax.numpy_dtype_promotion("standard"):
        yield
