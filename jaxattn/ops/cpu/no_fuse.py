"""Stops XLA:CPU from recomputing a value in every consumer."""

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array


def no_fuse(x: Array) -> Array:
    """Returns its argument; on a CPU, as a value in memory that no consumer recomputes.

    XLA's CPU backend fuses elementwise operations into each of their consumers. In a residual
    network, every consumer of a block's sum therefore recomputes it, back to the first block of
    that resolution. XLA drops an ``optimization_barrier`` before it fuses, but it does not look
    into a function marked as not inlineable. Calling that function copies nothing. Other backends
    do not call it.

    Only reverse-mode differentiation works, to any order. The gradient is not fused either.
    """
    return lax.platform_dependent(x, cpu=_kept, default=lambda x: x)


@jax.custom_vjp
def _kept(x: Array) -> Array:
    with set_xla_metadata(inlineable="false"):
        return _identity(x)


@jax.jit
def _identity(x: Array) -> Array:
    # JAX drops a function that only returns its argument.
    return lax.optimization_barrier(x)


_kept.defvjp(lambda x: (_kept(x), None), lambda _, gradient: (_kept(gradient),))
