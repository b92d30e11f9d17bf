"""Weights for which no max pool has a tie.

A max pool passes the gradient to the largest value of each window. Where the second largest is
within rounding error of it, two correct implementations may choose differently, and single elements
of the gradient differ by per cents. Among a million windows there always are some. So the kernels
of the channels concerned are perturbed until none are left. A channel whose ties remain is shifted
below 0 before its ReLU: it is constant then, and passes no gradient, whichever value is chosen.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax

from references import keras_weights
from references.keras_models import SoftAttention

#: Two values nearer than this, relative to the largest of all, are a tie. Endpoints of two
#: implementations differ by less on every processor.
_NEAR = 5e-6
#: The same for features weighted by attention, relative to the value itself: most are near 0, as
#: the softmax of large logits is, and their rounding errors are as much smaller. Gradients through
#: values below the second bound, relative to the largest, are as small, and cannot be seen.
_NEAR_ATTENDED, _VANISHING = 1e-5, 1e-6
#: Size of a perturbation in standard deviations of the kernel: too small to bring a value back to
#: the kinks that `keras_weights.draw` avoids.
_CHANGE = 0.05
_ROUNDS = 300
_PASSES = 10
#: Perturbations after which a channel is switched off.
_TRIES = 4


def break_ties(model: keras.Model, images: np.ndarray, seed: int) -> None:
    """Changes weights until no max pool of the model has a tie for these images.

    Args:
        model: A functional model with one input; some of its kernels and biases change.
        images: float32 (B, H, W, 3).
        seed: Seed of the perturbations.

    Raises:
        RuntimeError: Ties remain, or other values keep coming near the kinks of ReLUs.
    """
    # What changes before a pool changes all that follows.
    for _ in range(_PASSES):
        _break_ties(model, images, seed)
        if not keras_weights.move_back(model, images):
            return
    raise RuntimeError(f"{model.name}: ties and kinks take turns after {_PASSES} passes")


def _break_ties(model: keras.Model, images: np.ndarray, seed: int) -> None:
    pools = [layer for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    pools = [pool for pool in pools if pool.pool_size != (1, 1)]
    made_by = {id(out): each for each in model.layers for out in keras.tree.flatten(each.output)}
    find, rng = _finder(model, pools), np.random.default_rng(seed)
    tries = [np.zeros(pool.input.shape[-1], int) for pool in pools]
    for _ in range(_ROUNDS):
        # Start at the first pool with ties: a change before it affects all pools after it.
        ties = enumerate(find(images))
        number, tied = next(((i, each) for i, each in ties if each.any()), (-1, np.empty(0)))
        if number < 0:
            return
        tensor, makers = pools[number].input, set()
        for channel in np.flatnonzero(tied).tolist():
            tries[number][channel] += 1
            is_off = ""
            if tries[number][channel] > _TRIES:
                is_off = _switch_off(model, tensor, channel, made_by, images)
            if is_off != "now":
                makers.add(_maker(tensor, channel, made_by, is_off == "before")[:2])
        for layer, place in sorted(makers, key=lambda maker: (maker[0].name, maker[1])):
            kernel = np.array(layer.kernel)
            change = rng.normal(size=kernel.shape[:-1], scale=_CHANGE * kernel[..., place].std())
            kernel[..., place] += change
            layer.kernel.assign(kernel)
            if isinstance(layer, SoftAttention):
                tries[number][:] = 0  # all its channels have other values now
    raise RuntimeError(f"{model.name}: max pools still have ties after {_ROUNDS} rounds")


def _finder(
    model: keras.Model, pools: list[keras.layers.MaxPooling2D]
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Makes a function that finds the channels of each pool with a tie in any window."""
    if not pools:
        return lambda images: []
    inner = keras.Model(model.input, [pool.input for pool in pools])
    made_by = {id(out): each for each in model.layers for out in keras.tree.flatten(each.output)}
    attended = [_attended(pool.input, made_by) for pool in pools]

    @jax.jit
    def find(variables: tuple[list, list], images: jax.Array) -> list[jax.Array]:
        given, _ = inner.stateless_call(*variables, images, training=False)
        given = given if isinstance(given, list) else [given]
        each = zip(given, pools, attended, strict=True)
        return [_ties(x, pool, of_maps).any((0, 1, 2)) for x, pool, of_maps in each]

    def call(images: np.ndarray) -> list[np.ndarray]:
        trainable = [v.value for v in inner.trainable_variables]
        others = [v.value for v in inner.non_trainable_variables]
        return [np.asarray(each) for each in find((trainable, others), images)]

    return call


def _attended(tensor: Any, made_by: dict[int, Any]) -> np.ndarray:
    """Whether each channel of a tensor is one weighted by attention, bool (C,)."""
    layer = made_by[id(tensor)]
    if isinstance(layer, keras.layers.Concatenate):
        return np.concatenate([_attended(each, made_by) for each in layer.input])
    if isinstance(layer, keras.layers.MaxPooling2D):
        return _attended(layer.input, made_by)
    return np.full(tensor.shape[-1], isinstance(layer, SoftAttention))


def _ties(x: jax.Array, pool: keras.layers.MaxPooling2D, attended: np.ndarray) -> jax.Array:
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
    first, at = window.max(0), window.argmax(0)
    second = jnp.where(jnp.arange(len(window))[:, None, None, None, None] == at, -jnp.inf, window)
    largest = jnp.abs(jnp.where(jnp.isfinite(x), x, 0)).max()
    # The equal values of a channel that is off are no tie: rounding does not separate them.
    inside = jnp.where(jnp.isfinite(x), x, x.max((0, 1, 2)))
    is_on = inside.max((0, 1, 2)) > inside.min((0, 1, 2))
    near = jnp.where(attended, _NEAR_ATTENDED * jnp.abs(first), _NEAR * largest)
    matters = ~attended | (jnp.abs(first) > _VANISHING * largest)
    return (first - second.max(0) < near) & is_on & matters


def _switch_off(
    model: keras.Model, tensor: Any, channel: int, made_by: dict[int, Any], images: np.ndarray
) -> str:
    """Shifts a channel below 0 before the ReLU that made it.

    Returns:
        ``now``: it is off now; ``before``: it was; ``""``: no ReLU made it, or it must stay.
    """
    layer = made_by[id(tensor)]
    while not keras_weights.is_relu(layer) and not keras_weights.has_relu(layer):
        inputs, channel = _inputs(layer, channel)
        if len(inputs) > 1 or isinstance(layer, keras.layers.Conv2D):
            return ""
        layer = made_by[id(inputs[0])]
    if keras_weights.has_relu(layer):
        owner: Any = keras_weights.Owner(layer.bias)
    else:
        owner = keras_weights.owner_of(layer.input, made_by)
    if owner is None or channel < keras_weights.READ:
        return ""
    values = np.asarray(keras.Model(model.input, layer.output)(images))
    if np.ptp(values[..., channel]) == 0:
        return "before"
    shift = values[..., channel].max() + keras_weights.margin(values)[channel]
    bias = np.array(owner.bias)
    bias[channel] -= shift / owner.scale
    owner.bias.assign(bias)
    return "now"


def _inputs(layer: keras.Layer, channel: int) -> tuple[list[Any], int]:
    """The inputs of a layer that a channel of its output comes from, and the channel there."""
    inputs = keras.tree.flatten(layer.input)
    if isinstance(layer, keras.layers.Concatenate):
        while channel >= inputs[0].shape[-1]:
            channel -= inputs.pop(0).shape[-1]
        inputs = inputs[:1]
    # Without aggregation, attention repeats the channels.
    return inputs, channel % inputs[0].shape[-1]


def _maker(
    tensor: Any, channel: int, made_by: dict[int, Any], maps: bool
) -> tuple[keras.Layer, int, int]:
    """The nearest layer with a kernel that makes a channel, the kernel's place, and how far it is.

    With ``maps``, it is the attention that weights the channel, if there is one: channels that are
    constant before it have the ties of its maps.
    """
    layer = made_by[id(tensor)]
    if isinstance(layer, keras.layers.Conv2D):
        return layer, channel, 0
    if isinstance(layer, SoftAttention) and maps:
        return layer, channel % layer.heads, 0
    inputs, channel = _inputs(layer, channel)
    found = [_maker(each, channel, made_by, maps) for each in inputs]
    layer, place, steps = min(found, key=lambda maker: maker[2])
    return layer, place, steps + 1
