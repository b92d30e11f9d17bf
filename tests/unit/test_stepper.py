"""The memory line, errors about memory, and the trace, with steps that need no model."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxattn.errors import InputError
from jaxattn.runtime.stepper import Stepper


def stepper(step, batch_size=8, profile=0, folder=Path("profile")):
    config = ConfigDict({"batch_size": batch_size, "profile": profile})
    return Stepper(step, config, jax.devices()[0], folder)


def test_the_memory_is_that_of_arguments_and_results(capsys):
    """2^25 numbers of 4 bytes come in and 2^25 go out: 0.27 GB."""
    with stepper(jax.jit(lambda x: x + 1)) as take:
        x = take(jnp.zeros(2**25))
        take(x)
    out = capsys.readouterr().out
    assert out.startswith("a step of 8 images needs about 0.3 GB of the ")
    assert out.count("\n") == 1


class Failing:
    """A step that fails while it is compiled, or while it runs."""

    def __init__(self, message, compiles=True):
        self.message, self.compiles = message, compiles

    def lower(self, *arguments):
        return self

    def compile(self):
        if not self.compiles:
            raise jax.errors.JaxRuntimeError(self.message)
        return self

    def memory_analysis(self):
        return type("Analysis", (), {"peak_memory_in_bytes": 90_100_000_000})

    def __call__(self, *arguments):
        raise jax.errors.JaxRuntimeError(self.message)


@pytest.mark.parametrize(
    ("compiles", "needs"), [(True, "about 90.1 GB"), (False, "an unknown size")]
)
def test_too_little_memory_is_one_line(compiles, needs):
    message = "RESOURCE_EXHAUSTED: Out of memory allocating 96745123840 bytes.\nBuffers: ..."
    with (
        pytest.raises(InputError, match=rf"^batch_size: expected .* got 512 images.*{needs}$"),
        stepper(Failing(message, compiles), 512) as take,
    ):
        take()


def test_other_errors_stay_what_they_are():
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        stepper(Failing("INTERNAL: no")) as take,
    ):
        take()


@pytest.mark.parametrize("steps", [2, 4])
def test_steps_after_the_first_are_traced(tmp_path, steps):
    """Also if training ends before the trace does."""
    traced = jax.jit(lambda x: jnp.sin(x) @ x)
    with stepper(traced, profile=2, folder=tmp_path) as take:
        for _ in range(steps):
            x = take(np.ones((8, 8), np.float32))
            assert np.isfinite(x).all()
    (trace,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 0


def test_nothing_is_traced_unless_asked(tmp_path):
    with stepper(jax.jit(jnp.sin), folder=tmp_path / "profile") as take:
        take(1.0)
        take(1.0)
    assert not (tmp_path / "profile").exists()
