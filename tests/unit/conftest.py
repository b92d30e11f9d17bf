"""Unit tests refuse implicit broadcasting and implicit changes of type."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion():
    """Arrays of different ranks, or of different dtypes, meet only where the code says how."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield
