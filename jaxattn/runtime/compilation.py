"""XLA's compiler options, and a cache on disk of what it compiled."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp

#: XLA's CPU backend has two implementations of convolutions. It prefers YNNPACK's, which is the
#: slower one on AVX-512, above all for kernel gradients. YNNPACK's sums and matrix products are
#: faster, and stay.
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_DOT,"
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
}


def use_cache() -> None:
    """Makes JAX cache compiled programs in the user's cache folder.

    The folder is ``$XDG_CACHE_HOME/jaxattn/xla``, by default ``~/.cache/jaxattn/xla``, unless
    ``JAX_COMPILATION_CACHE_DIR`` or JAX's config names another one;
    ``JAX_ENABLE_COMPILATION_CACHE=0`` turns the cache off. Programs are keyed by their code,
    options, versions and device kind, so results are the same with and without a cache. Does
    nothing if the folder is not writable.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home, "jaxattn", "xla")
        # The files are executed, so nobody else may write them.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


@functools.cache
def options(platform: str) -> dict[str, str]:
    """The ``compiler_options`` of ``jax.jit`` for steps on a platform: cpu, gpu or tpu.

    Experimental options change between versions of XLA; if the installed one rejects these, the
    result is empty.
    """
    if platform != "cpu":
        return {}
    try:
        jax.jit(jnp.negative, compiler_options=CPU_OPTIONS).lower(1.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return CPU_OPTIONS
