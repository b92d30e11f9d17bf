"""How XLA compiles: with which options, and that what was compiled once is read from disk again."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp

#: XLA's CPU backend has two implementations of convolutions and takes YNNPACK's, on AVX-512 the
#: slower one, above all for kernel gradients. Sums and matrix products are left to YNNPACK, which
#: is the faster there.
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_DOT,"
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
}


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


@functools.cache
def options(platform: str) -> dict[str, str]:
    """Options for ``jax.jit(..., compiler_options=)`` of steps on a platform: cpu, gpu or tpu.

    Experimental options come and go with the versions of XLA: where this one does not know them,
    there are none.
    """
    if platform != "cpu":
        return {}
    try:
        jax.jit(jnp.negative, compiler_options=CPU_OPTIONS).lower(1.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return CPU_OPTIONS
