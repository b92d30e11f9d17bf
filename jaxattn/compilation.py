"""The compilation cache: what was compiled once is read from disk the next time."""

import os
from pathlib import Path

import jax


def use_cache() -> None:
    """Has JAX keep what it compiles in the user's cache folder, and look for it there.

    The folder is ``$XDG_CACHE_HOME/jaxattn/xla``, by default ``~/.cache/jaxattn/xla``, unless
    ``JAX_COMPILATION_CACHE_DIR`` or JAX's config names another one;
    ``JAX_ENABLE_COMPILATION_CACHE=0`` turns the cache off. A program is found only by the same
    program, options, versions and kind of device, so that a run computes the same with and without.
    Does nothing where the folder cannot be written.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home, "jaxattn", "xla")
        # Nobody else may write there: what lies in the folder is run.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
