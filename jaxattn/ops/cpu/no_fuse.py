"""Values that XLA's CPU backend computes once and keeps, instead of anew in each of their uses."""

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array


def no_fuse(x: Array) -> Array:
    """The same values; on a CPU in memory, so that their uses read them there.

    XLA's CPU backend merges what is computed element by element into each of its uses, and so a
    residual network computes a block's sum anew, from the first block of that resolution on, for
    every use in the block. It does not look into a function that may not be inlined; an
    ``optimization_barrier`` it drops before it merges. The function copies nothing. On other
    backends there is none.

    It has reverse-mode derivatives only, of any order; the gradient is no_fuse too.
    """
    return lax.platform_dependent(x, cpu=_kept, default=lambda x: x)


@jax.custom_vjp
def _kept(x: Array) -> Array:
    with set_xla_metadata(inlineable="false"):
        return _as_it_is(x)


@jax.jit
def _as_it_is(x: Array) -> Array:
    # A function that only returns its argument JAX would drop.
    return lax.optimization_barrier(x)


_kept.defvjp(lambda x: (_kept(x), None), lambda _, gradient: (_kept(gradient),))
