"""Compiled programs are kept where the user's cache is, unless the user says otherwise."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxattn.runtime import compilation


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """A user with a home and no settings of the cache; what tests use is back afterwards."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_folder_is_in_the_users_cache(unset, monkeypatch, tmp_path):
    compilation.use_cache()
    folder = tmp_path / ".cache" / "jaxattn" / "xla"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    compilation.use_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "other" / "jaxattn" / "xla")


def test_a_folder_that_is_set_stays(unset, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    compilation.use_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert not (tmp_path / ".cache").exists()


def test_a_folder_that_cannot_be_made_is_done_without(unset, tmp_path):
    (tmp_path / ".cache").write_text("a file")
    compilation.use_cache()
    assert jax.config.jax_compilation_cache_dir is None


@pytest.fixture
def afresh():
    """What is found out about this XLA is forgotten before and after."""
    compilation.options.cache_clear()
    yield
    compilation.options.cache_clear()


def test_options_that_this_xla_does_not_know_are_left_out(afresh, monkeypatch):
    monkeypatch.setattr(compilation, "CPU_OPTIONS", {"xla_cpu_of_tomorrow": "1"})
    assert compilation.options("cpu") == {}


def test_convolutions_on_a_cpu_are_not_those_of_ynnpack(afresh):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 28, 28, 64), np.float32)
    kernel = rng.standard_normal((3, 3, 64, 64), np.float32)

    def convolve(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)

    wanted = jax.jit(convolve).lower(x, kernel).compile()
    if "kind=kCustom" not in wanted.as_text():
        pytest.skip("this XLA takes no convolutions of YNNPACK's of itself")
    options = compilation.options("cpu")
    got = jax.jit(convolve, compiler_options=options).lower(x, kernel).compile()
    assert "kind=kCustom" not in got.as_text()
    np.testing.assert_allclose(got(x, kernel), wanted(x, kernel), rtol=1e-5, atol=1e-4)


def test_accelerators_have_no_options_of_a_cpu(afresh):
    assert compilation.options("gpu") == compilation.options("tpu") == {}


PROGRAM = """
import sys
import jax
from jaxattn.runtime import compilation
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
compilation.use_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(float(jax.jit(lambda x: (x @ x).sum())(jax.random.normal(jax.random.key(0), (50, 50)))).hex())
print(sum(hits))
"""


def run(home, **environment):
    """What the program computes, and how many of its parts came from the cache."""
    env = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": "", **environment}
    if "JAX_COMPILATION_CACHE_DIR" not in environment:
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env, check=True
    )
    result, hits = done.stdout.split()
    return result, int(hits)


def test_a_second_process_compiles_nothing_and_computes_the_same(tmp_path):
    home, named = tmp_path / "home", tmp_path / "named"
    home.mkdir()
    first, hits = run(home)
    assert not hits
    assert any((home / ".cache" / "jaxattn" / "xla").iterdir())
    second, hits = run(home)
    assert hits
    off, hits = run(home, JAX_ENABLE_COMPILATION_CACHE="0")
    assert not hits
    elsewhere, hits = run(home, JAX_COMPILATION_CACHE_DIR=str(named))
    assert not hits
    assert any(named.iterdir())
    assert first == second == off == elsewhere
