"""Weights at which a network's max pools have a clear choice.

A max pool passes the gradient to the largest value of each window. Where the second is as near as
rounding errors are large, two correct implementations may choose differently, and single elements
of the gradient then differ by percents. Among a million windows there are always some; so the
kernels of the channels that have them are changed a little, until there are none.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax

from benchmarks.peers.keras_models import SoftAttention

#: Two values nearer than this, relative to the largest of all, count as a tie. Endpoints of two
#: implementations differ by that at most.
_NEAR = 3e-6
#: What is added to a kernel, in its standard deviations: too little to bring any value back to the
#: kinks that `keras_weights.draw` keeps away from.
_CHANGE = 0.05
_ROUNDS = 300
#: Changes after which a channel's ties stay: it is off, and the same whatever its kernel.
_TRIES = 25


def break_ties(model: keras.Model, images: np.ndarray, seed: int) -> None:
    """Changes kernels until no max pool of the model has a tie for these images.

    Args:
        model: A functional model with one input; its kernels are changed here and there.
        images: float32 (B, H, W, 3).
        seed: Of the changes.

    Raises:
        RuntimeError: There are still ties after many rounds.
    """
    pools = [layer for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    pools = [pool for pool in pools if pool.pool_size != (1, 1)]
    made_by = {id(out): each for each in model.layers for out in keras.tree.flatten(each.output)}
    find, rng = _finder(model, pools), np.random.default_rng(seed)
    tries = [np.zeros(pool.input.shape[-1], int) for pool in pools]
    for _ in range(_ROUNDS):
        tied = [each & (n < _TRIES) for each, n in zip(find(images), tries, strict=True)]
        # The first pool that has ties: what is changed before it changes all that follows.
        number = next((i for i, channels in enumerate(tied) if channels.any()), None)
        if number is None:
            return
        tries[number] += tied[number]
        for channel in np.flatnonzero(tied[number]):
            layer, place = _maker(pools[number].input, int(channel), made_by, rng)
            kernel = np.array(layer.kernel)
            change = rng.normal(size=kernel.shape[:-1], scale=_CHANGE * kernel[..., place].std())
            kernel[..., place] += change
            layer.kernel.assign(kernel)
    raise RuntimeError(f"{model.name}: max pools have ties after {_ROUNDS} rounds, none wanted")


def _finder(
    model: keras.Model, pools: list[keras.layers.MaxPooling2D]
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Which channels of each pool have a tie in any window."""
    if not pools:
        return lambda images: []
    inner = keras.Model(model.input, [pool.input for pool in pools])

    @jax.jit
    def find(variables: tuple[list, list], images: jax.Array) -> list[jax.Array]:
        given, _ = inner.stateless_call(*variables, images, training=False)
        given = given if isinstance(given, list) else [given]
        return [_ties(x, pool).any((0, 1, 2)) for x, pool in zip(given, pools, strict=True)]

    def call(images: np.ndarray) -> list[np.ndarray]:
        trainable = [v.value for v in inner.trainable_variables]
        others = [v.value for v in inner.non_trainable_variables]
        return [np.asarray(each) for each in find((trainable, others), images)]

    return call


def _ties(x: jax.Array, pool: keras.layers.MaxPooling2D) -> jax.Array:
    """Whether the two largest values of each window and channel are a tie, (B, h, w, C)."""
    pads = lax.padtype_to_pads(x.shape[1:3], pool.pool_size, pool.strides, pool.padding.upper())
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    (rows, columns), (down, across) = pool.pool_size, pool.strides
    last_row, last_column = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    window = jnp.stack(
        [
            x[:, i : i + last_row : down, j : j + last_column : across]
            for i in range(rows)
            for j in range(columns)
        ]
    )
    # Equal values are those of a channel that is off, or one value met twice: no rounding error
    # parts them, and both implementations choose the first.
    first = window.max(0)
    second = jnp.where(window < first, window, -jnp.inf).max(0)
    largest = jnp.abs(jnp.where(jnp.isfinite(x), x, 0)).max()
    return first - second < _NEAR * largest


def _maker(
    tensor: Any, channel: int, made_by: dict[int, Any], rng: np.random.Generator
) -> tuple[keras.Layer, int]:
    """A convolution that has a part in a channel, and its channel there."""
    layer = made_by[id(tensor)]
    if isinstance(layer, keras.layers.Conv2D):
        return layer, channel
    inputs = keras.tree.flatten(layer.input)
    if isinstance(layer, keras.layers.Concatenate):
        while channel >= inputs[0].shape[-1]:
            channel -= inputs.pop(0).shape[-1]
        inputs = inputs[:1]
    if isinstance(layer, SoftAttention):  # With its maps apart, it repeats the channels.
        channel %= inputs[0].shape[-1]
    # Of the terms of a sum any: one of them may be off.
    return _maker(inputs[rng.integers(len(inputs))], channel, made_by, rng)
