"""Compiled programs are kept where the user's cache is, unless the user says otherwise."""

import os
import subprocess
import sys

import jax
import pytest

from jaxattn import compilation


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


PROGRAM = """
import sys
import jax
from jaxattn import compilation
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
