"""Weights for which no max pool has a tie.

A max pool passes the gradient to the largest value of each window. Where the second largest is
within rounding error of it, two correct implementations may choose differently, and single elements
of the gradient differ by per cents. Among a million windows there always are some. So the kernels
of the channels concerned are perturbed until none are left.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax

from references.keras_models import SoftAttention

#: Two values nearer than this, relative to the largest of all, are a tie. Endpoints of two
#: implementations differ by less.
_NEAR = 3e-6
#: Size of a perturbation in standard deviations of the kernel: too small to bring a value back to
#: the kinks that `keras_weights.draw` avoids.
_CHANGE = 0.05
_ROUNDS = 300
#: Perturbations after which a channel is left alone: it is off, whatever its kernel.
_TRIES = 25


def break_ties(model: keras.Model, images: np.ndarray, seed: int) -> None:
    """Perturbs kernels until no max pool of the model has a tie for these images.

    Args:
        model: A functional model with one input; some of its kernels change.
        images: float32 (B, H, W, 3).
        seed: Seed of the perturbations.

    Raises:
        RuntimeError: Ties remain after 300 rounds.
    """
    pools = [layer for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    pools = [pool for pool in pools if pool.pool_size != (1, 1)]
    made_by = {id(out): each for each in model.layers for out in keras.tree.flatten(each.output)}
    find, rng = _finder(model, pools), np.random.default_rng(seed)
    tries = [np.zeros(pool.input.shape[-1], int) for pool in pools]
    for _ in range(_ROUNDS):
        tied = [each & (n < _TRIES) for each, n in zip(find(images), tries, strict=True)]
        # Start at the first pool with ties: a change before it affects all pools after it.
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
    raise RuntimeError(f"{model.name}: max pools still have ties after {_ROUNDS} rounds")


def _finder(
    model: keras.Model, pools: list[keras.layers.MaxPooling2D]
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Makes a function that finds the channels of each pool with a tie in any window."""
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
    # Equal values come from a channel that is off or from one value seen twice: rounding does not
    # separate them, and both implementations choose the first.
    first = window.max(0)
    second = jnp.where(window < first, window, -jnp.inf).max(0)
    largest = jnp.abs(jnp.where(jnp.isfinite(x), x, 0)).max()
    return first - second < _NEAR * largest


def _maker(
    tensor: Any, channel: int, made_by: dict[int, Any], rng: np.random.Generator
) -> tuple[keras.Layer, int]:
    """A convolution that contributes to a channel, and the channel of its output that does."""
    layer = made_by[id(tensor)]
    if isinstance(layer, keras.layers.Conv2D):
        return layer, channel
    inputs = keras.tree.flatten(layer.input)
    if isinstance(layer, keras.layers.Concatenate):
        while channel >= inputs[0].shape[-1]:
            channel -= inputs.pop(0).shape[-1]
        inputs = inputs[:1]
    if isinstance(layer, SoftAttention):  # without aggregation it repeats the channels
        channel %= inputs[0].shape[-1]
    # Any term of a sum will do, but one of them may be off: choose at random.
    return _maker(inputs[rng.integers(len(inputs))], channel, made_by, rng)
