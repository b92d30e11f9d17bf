"""Random weights that make two implementations of a network comparable.

Freshly initialised weights would hide errors: batch statistics are 0 and 1, biases 0. So `draw`
draws every array at random. Batch statistics are estimated from given images and perturbed; with
arbitrary ones, activations would explode or vanish in a deep network. They are estimated over all
channels together and around a mean of 0: normalising each channel separately makes a network with
random kernels chaotic, so that it amplifies rounding errors layer by layer, which no trained
network does.

Gradients need one thing more. For any images, some of a network's millions of ReLUs get inputs
within rounding error of 0. Two correct implementations then differ in whether the gradient passes,
and single elements of the gradient differ by per cents. Away from these kinks, rounding errors stay
small. So `draw` can shift each channel, once its values for the given images are known, until all
of them are well above 0 or well below.

Training would soon leave that state: Adam's steps are about as large as the learning rate whatever
the gradient, which is much compared with He-initialised kernels. With batch norm and the loss of a
random network, training is also chaotic: after a few steps, losses differ by per cents between two
runs of the same implementation on images that differ by one rounding. So for training, kernels are
drawn larger by a factor that batch norm cancels, which makes the steps relatively smaller.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from references.keras_models import SoftAttention

Tensor = Any

#: Share of the channels shifted above 0: with fewer, little would reach the output; with all of
#: them, the network would be linear.
_POSITIVE = 0.75
#: The first channels are always above: the released attention reads these three alone.
READ = 3
#: Factor on the kernels for training.
_ENLARGED = 100.0


def draw(
    model: keras.Model,
    images: np.ndarray,
    seed: int,
    away_from_kinks: bool,
    training: bool = False,
) -> None:
    """Draws all weights of a model.

    Kernels are He-normal; biases and means have a standard deviation of 0.2, variances and scales
    deviate from 1 by up to a half.

    Args:
        model: A functional model with one input; its variables are overwritten.
        images: Images to estimate the batch statistics from, float32 (B, H, W, 3).
        seed: Seed of all draws.
        away_from_kinks: Whether to keep the inputs of all ReLUs away from 0 for these images.
        training: Whether to do so for batch norm in training mode, and for some training steps.
    """
    rng = np.random.default_rng(seed)

    def prepare(layer: keras.Layer, given: Tensor) -> None:
        _draw_layer(layer, given, rng)
        if training and isinstance(layer, keras.layers.Conv2D):
            layer.kernel.assign(layer.kernel.value * _ENLARGED)

    shift = functools.partial(_shift, rng=rng) if away_from_kinks else None
    _forward(model, images, prepare, shift, training)


def move_back(model: keras.Model, images: np.ndarray) -> bool:
    """Shifts the channels that have come near a kink again, since weights before them changed.

    Args:
        model: Its weights were drawn away from kinks.
        images: Those that they were drawn for.

    Returns:
        Whether there were any.
    """
    moved = False

    def shift(values: Tensor) -> np.ndarray:
        nonlocal moved
        found = _shift_back(values)
        moved |= bool(found.any())
        return found

    _forward(model, images, lambda layer, given: None, shift)
    return moved


def _forward(
    model: keras.Model,
    images: np.ndarray,
    prepare: Callable[[keras.Layer, Tensor], None],
    shift: Callable[[Tensor], np.ndarray] | None,
    training: bool = False,
) -> None:
    """Computes a model layer by layer.

    Args:
        model: The model.
        images: Its input.
        prepare: Given each layer and its first input, before the layer is computed.
        shift: Of the inputs of a ReLU, by how much to shift each channel; None not to.
        training: Whether batch norm uses the batch.
    """
    values: dict[int, Tensor] = {id(model.input): keras.ops.convert_to_tensor(images)}
    made_by = {id(out): layer for layer in model.layers for out in _outputs(layer)}
    for layer in model.layers[1:]:
        given = [values[id(tensor)] for tensor in _inputs(layer)]
        prepare(layer, given[0])
        if shift is not None:
            if is_relu(layer) or isinstance(layer, SoftAttention):
                given = [_move_before(layer, given[0], made_by, shift)]
                values[id(layer.input)] = given[0]
            if has_relu(layer):
                _move_inside(layer, given[0], shift)
        out = layer(given if len(given) > 1 else given[0], training=training)
        for tensor, value in zip(_outputs(layer), keras.tree.flatten(out), strict=True):
            values[id(tensor)] = value


def _inputs(layer: keras.Layer) -> list[Tensor]:
    return keras.tree.flatten(layer.input)


def _outputs(layer: keras.Layer) -> list[Tensor]:
    return keras.tree.flatten(layer.output)


def _draw_layer(layer: keras.Layer, given: Tensor, rng: np.random.Generator) -> None:
    """Draws a layer's weights; batch statistics are estimated from its input."""
    power = np.mean(np.square(given))
    for variable in layer.trainable_variables + layer.non_trainable_variables:
        shape, name = variable.shape, variable.name
        if name == "kernel":
            fan_in = np.prod(shape[:-1])
            value = rng.normal(size=shape, scale=np.sqrt(2 / fan_in))
        elif name == "gamma":
            value = rng.uniform(0.5, 1.5, size=shape)
        elif name == "moving_mean":
            value = np.sqrt(power) * rng.normal(size=shape, scale=0.2)
        elif name == "moving_variance":
            value = power * rng.uniform(0.5, 1.5, size=shape)
        elif name in ("bias", "beta"):
            value = rng.normal(size=shape, scale=0.2)
        else:
            continue  # a dropout layer's random state
        variable.assign(value.astype(np.float32))


class Owner(NamedTuple):
    """The bias that shifts a tensor's channels, and the factor between the two."""

    bias: keras.Variable
    scale: float = 1.0


def owner_of(tensor: Tensor, made_by: dict[int, keras.Layer]) -> Owner | None:
    """The owner of a tensor, if there is one; ``made_by`` gives the layer of a tensor's id."""
    layer: Any = made_by.get(id(tensor))
    if isinstance(layer, keras.layers.BatchNormalization):
        return Owner(layer.beta)
    if isinstance(layer, keras.layers.Conv2D) and layer.use_bias and not has_relu(layer):
        return Owner(layer.bias)
    if isinstance(layer, keras.layers.Add):
        owners = (owner_of(each, made_by) for each in layer.input)
        return next((owner for owner in owners if owner), None)
    if _is_scaled_sum(layer):
        found = owner_of(layer.input[1], made_by)
        return found and found._replace(scale=layer.scale)
    return None


def margin(values: Tensor) -> np.ndarray:
    """How far from 0 is well away from it: half a channel's standard deviation, and 0.1; (C,).

    Vectors have too few values of a channel: there it is the deviation of all of them.
    """
    values = np.asarray(values)
    spread = values.std((0, 1, 2)) if values.ndim == 4 else values.std()
    return np.broadcast_to(0.5 * spread + 0.1, values.shape[-1:])


def _shift(values: Tensor, rng: np.random.Generator) -> np.ndarray:
    """The shift that moves each channel to one side of 0, by the margin."""
    flat = np.asarray(values).reshape(-1, values.shape[-1])
    above, below = margin(values) - flat.min(axis=0), -margin(values) - flat.max(axis=0)
    channels = np.arange(flat.shape[-1])
    up = (rng.random(len(channels)) < _POSITIVE) | (channels < READ)
    return np.where(up, above, below)


def _shift_back(values: Tensor) -> np.ndarray:
    """The shift that moves each channel within half the margin of 0 to the side that it is on."""
    flat = np.asarray(values).reshape(-1, values.shape[-1])
    low, high, wide = flat.min(axis=0), flat.max(axis=0), margin(values)
    away = (low >= wide / 2) | (high <= -wide / 2)
    back = np.where(low + high > 0, wide - low, -wide - high)
    return np.where(away, 0.0, back)


def _move_before(
    layer: keras.Layer,
    given: Tensor,
    made_by: dict[int, keras.Layer],
    shift_of: Callable[[Tensor], np.ndarray],
) -> Tensor:
    """Shifts a ReLU's input through the bias that produced it, if any."""
    owner = owner_of(layer.input, made_by)
    if owner is None:
        return given
    shift = shift_of(given)
    owner.bias.assign(owner.bias.value + (shift / owner.scale).astype(np.float32))
    return given + shift.astype(np.float32)


def _move_inside(
    layer: keras.Layer, given: Tensor, shift_of: Callable[[Tensor], np.ndarray]
) -> None:
    """Shifts the input of a convolution's or dense layer's own ReLU through the layer's bias."""
    layer.activation = keras.activations.linear
    shift = shift_of(layer(given))
    layer.activation = keras.activations.relu
    layer.bias.assign(layer.bias.value + shift.astype(np.float32))


def _is_scaled_sum(layer: keras.Layer) -> bool:
    """Whether it is Inception-ResNet's input + scale * branch."""
    return type(layer).__name__ == "CustomScaleLayer"


def is_relu(layer: keras.Layer) -> bool:
    """Whether a layer is a ReLU and nothing else."""
    return isinstance(layer, keras.layers.ReLU) or (
        isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.relu
    )


def has_relu(layer: keras.Layer) -> bool:
    """Whether a convolution or dense layer ends with a ReLU."""
    with_weights = isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)
    return with_weights and layer.activation is keras.activations.relu
