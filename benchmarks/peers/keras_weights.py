"""Random weights with which a network can be compared with another writing of itself.

What a fresh network has would hide errors: its batch statistics are 0 and 1, its biases 0. So every
array is drawn here. Batch statistics are those of given images, off by a random share: with others,
activations would explode or vanish on the way through a deep network. They are those of all of a
layer's channels together and around 0: normalising each channel by itself makes a network of random
kernels chaotic, so that it magnifies rounding errors layer by layer, as no trained network does.

Gradients need one thing more. A network has millions of ReLUs; whatever the images, some of them
are given values as near to 0 as rounding errors are large. Two correct implementations then differ
in whether the gradient passes there, and single elements of the gradient by percents. Away from
these kinks, rounding errors stay rounding errors: so `draw` can shift every channel, once its
values for the given images are known, until all of them are well above 0 or all well below.

Training on these images would soon leave that state: Adam's steps are as large as the learning rate
almost whatever the gradient, and beside He's kernels that is much. With batch norm and the loss of
a random network it is also chaos: losses after few steps differ by percents between an
implementation and itself, given images that are one rounding apart. So for training, kernels are
drawn larger by a factor that batch norm takes out again; only the steps are smaller beside them.
"""

from typing import Any, NamedTuple

import keras
import numpy as np

from benchmarks.peers.keras_models import SoftAttention

Tensor = Any

#: Share of the channels that are above 0 away from the kinks: with fewer, little would reach the
#: output, with all of them, the network would be linear.
_POSITIVE = 0.75
#: Factor of the kernels for training.
_ENLARGED = 100.0


def draw(
    model: keras.Model,
    images: np.ndarray,
    seed: int,
    away_from_kinks: bool,
    training: bool = False,
) -> None:
    """Draws all weights of a model.

    Kernels are He's normal distribution; biases and means are off from 0 by 0.2 standard
    deviations, variances and scales from 1 by up to a half.

    Args:
        model: A functional model with one input; its variables are assigned to.
        images: What the batch statistics are taken from, float32 (B, H, W, 3).
        seed: Of everything.
        away_from_kinks: Whether no ReLU is to be given values near 0 for these images.
        training: Whether that is to hold with the batch norm of training, and for some steps of it.
    """
    rng = np.random.default_rng(seed)
    values: dict[int, Tensor] = {id(model.input): keras.ops.convert_to_tensor(images)}
    made_by = {id(out): layer for layer in model.layers for out in _outputs(layer)}
    for layer in model.layers[1:]:
        given = [values[id(tensor)] for tensor in _inputs(layer)]
        _draw_layer(layer, given[0], rng)
        if training and isinstance(layer, keras.layers.Conv2D):
            layer.kernel.assign(layer.kernel.value * _ENLARGED)
        if away_from_kinks:
            if _is_relu(layer) or isinstance(layer, SoftAttention):
                given = [_move_before(layer, given[0], made_by, rng)]
                values[id(layer.input)] = given[0]
            if _has_relu(layer):
                _move_inside(layer, given[0], rng)
        out = layer(given if len(given) > 1 else given[0], training=training)
        for tensor, value in zip(_outputs(layer), keras.tree.flatten(out), strict=True):
            values[id(tensor)] = value


def _inputs(layer: keras.Layer) -> list[Tensor]:
    return keras.tree.flatten(layer.input)


def _outputs(layer: keras.Layer) -> list[Tensor]:
    return keras.tree.flatten(layer.output)


def _draw_layer(layer: keras.Layer, given: Tensor, rng: np.random.Generator) -> None:
    """Draws a layer's weights, batch statistics from what it is given."""
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
            continue  # The state of a dropout layer's random numbers.
        variable.assign(value.astype(np.float32))


class _Owner(NamedTuple):
    """The bias that shifts a tensor's channels, and how much it is scaled on the way."""

    bias: keras.Variable
    scale: float = 1.0


def _owner(tensor: Tensor, made_by: dict[int, keras.Layer]) -> _Owner | None:
    layer = made_by.get(id(tensor))
    if isinstance(layer, keras.layers.BatchNormalization):
        return _Owner(layer.beta)
    if isinstance(layer, keras.layers.Conv2D) and layer.use_bias and not _has_relu(layer):
        return _Owner(layer.bias)
    if isinstance(layer, keras.layers.Add):
        owners = (_owner(each, made_by) for each in layer.input)
        return next((owner for owner in owners if owner), None)
    if _is_scaled_sum(layer):
        found = _owner(layer.input[1], made_by)
        return found and found._replace(scale=layer.scale)
    return None


def _shift(values: Tensor, rng: np.random.Generator) -> np.ndarray:
    """What moves each channel to one side of 0, at half a standard deviation's distance."""
    values = np.asarray(values).reshape(-1, values.shape[-1])
    margin = 0.5 * values.std(axis=0) + 0.1
    above, below = margin - values.min(axis=0), -margin - values.max(axis=0)
    return np.where(rng.random(values.shape[-1]) < _POSITIVE, above, below)


def _move_before(
    layer: keras.Layer, given: Tensor, made_by: dict[int, keras.Layer], rng: np.random.Generator
) -> Tensor:
    """Shifts what a ReLU is given by the bias that it comes from, if it comes from one."""
    owner = _owner(layer.input, made_by)
    if owner is None:
        return given
    shift = _shift(given, rng)
    owner.bias.assign(owner.bias.value + (shift / owner.scale).astype(np.float32))
    return given + shift.astype(np.float32)


def _move_inside(layer: keras.Layer, given: Tensor, rng: np.random.Generator) -> None:
    """Shifts what the ReLU inside a convolution or dense layer is given by the layer's bias."""
    layer.activation = keras.activations.linear
    shift = _shift(layer(given), rng)
    layer.activation = keras.activations.relu
    layer.bias.assign(layer.bias.value + shift.astype(np.float32))


def _is_scaled_sum(layer: keras.Layer) -> bool:
    """Whether it is Inception-ResNet's input + scale * branch."""
    return type(layer).__name__ == "CustomScaleLayer"


def _is_relu(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.ReLU) or (
        isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.relu
    )


def _has_relu(layer: keras.Layer) -> bool:
    with_weights = isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)
    return with_weights and layer.activation is keras.activations.relu
