"""The training step and the evaluation step, each one jitted function of (state, data, batch).

``data`` holds what stays on the device for the whole run: the images, where the data set fits there
(``{"image": (N, H, W, 3)}``), or nothing. ``batch`` holds what comes anew in each step: the row of
each example, its label and, where ``data`` has none, its image.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from jaxattn.data.augment import Augmentation, augment
from jaxattn.data.crops import Crops
from jaxattn.losses import CrossEntropy
from jaxattn.sharding import batched, replicated
from jaxattn.state import TrainState, Variables

Arrays = Mapping[str, Array]

#: The image as it is.
WHOLE = Crops()


def images_of(data: Arrays, batch: Arrays) -> UInt8[Array, "batch height width 3"]:
    """The batch's images: sent with it, or read from those on the device."""
    return data["image"][batch["row"]] if "image" in data else batch["image"]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: CrossEntropy,
    ranges: Augmentation,
    mesh: Mesh,
    *,
    normalise: Callable[[Array], Array],
    seed: int,
    crops: Crops = WHOLE,
    average_decay: float = 0.0,
) -> Callable[[TrainState, Arrays, Arrays], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """Makes the jitted step: augment, forward, loss, backward, update, in one program.

    Args:
        model: Called ``(images, *, train)``, returns logits and attention maps.
        optimizer: What turns gradients into updates.
        loss: Mean loss of logits and labels.
        ranges: Augmentation to draw.
        mesh: The devices; the state is on each, the batch spread over them. Batch statistics are
            those of the global batch.
        normalise: Maps pixels in [0, 1] to the network's input range.
        seed: All random numbers of a step are a pure function of (seed, step).
        crops: What the model sees of an augmented image.
        average_decay: Decay of the moving average of the variables per step, where the state has
            one; in the first steps it is ``(1 + step) / (10 + step)`` where that is less.

    Returns:
        ``(state, data, batch) -> (state, metrics)``. The state given is donated. The metrics are
        the batch's mean loss and accuracy before the update.
    """

    def step(state: TrainState, data: Arrays, batch: Arrays):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        augment_key, dropout_key, crop_key = jax.random.split(key, 3)
        pixels, _ = augment(augment_key, images_of(data, batch), None, ranges)
        images = normalise(crops.training(crop_key, pixels))

        def loss_of(params: Any):
            (logits, _), changed = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )
            return loss(logits, batch["label"]), (logits, changed.get("batch_stats", {}))

        (value, (logits, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            decay = jnp.minimum(average_decay, (1 + state.step) / (10 + state.step))
            new = {"params": params, "batch_stats": batch_stats}
            average = optax.incremental_update(new, average, 1 - decay)
        accuracy = jnp.mean(logits.argmax(-1) == batch["label"])
        return (
            TrainState(state.step + 1, params, batch_stats, opt_state, average),
            {"loss": value, "accuracy": accuracy},
        )

    same, spread = replicated(mesh), batched(mesh)
    return jax.jit(
        step,
        in_shardings=(same, same, spread),
        out_shardings=(same, same),
        donate_argnums=0,
    )


def make_predict_step(
    model: nn.Module,
    mesh: Mesh,
    *,
    normalise: Callable[[Array], Array],
    views: int = 1,
    crops: Crops = WHOLE,
) -> Callable[[Variables, Arrays, Arrays], tuple[Float[Array, "batch classes"], dict[str, Array]]]:
    """Makes the jitted ``(variables, data, batch) -> (probabilities, attention maps)``.

    Args:
        model: Called ``(images, *, train)``.
        mesh: The devices.
        normalise: Maps pixels in [0, 1] to the network's input range.
        views: 1: the image as it is; 8: the probabilities' mean over the image, its mirror image
            and their quarter turns (square images only). The maps are always those of the image as
            it is.
        crops: What the model sees of an image.
    """

    def probabilities_of(variables: Variables, pixels: Array) -> tuple[Array, dict[str, Array]]:
        inputs = normalise(crops.evaluation(pixels))
        logits, maps = model.apply(variables, inputs, train=False)
        return crops.combine(jax.nn.softmax(logits)), maps

    def step(variables: Variables, data: Arrays, batch: Arrays):
        pixels = images_of(data, batch).astype(jnp.float32) / 255.0
        probabilities, maps = probabilities_of(variables, pixels)
        maps = {name: crops.on_image(each, *pixels.shape[1:3]) for name, each in maps.items()}
        if views == 1:
            return probabilities, maps
        # One view after the other: eight at once would take eight times the memory.
        turned = lambda pixels, turns: jnp.rot90(pixels, turns, axes=(1, 2))  # noqa: E731
        others = [(pixels, turns) for turns in (1, 2, 3)]
        others += [(pixels[:, :, ::-1], turns) for turns in (0, 1, 2, 3)]
        for view, turns in others:
            probabilities += probabilities_of(variables, turned(view, turns))[0]
        return probabilities / views, maps

    same, spread = replicated(mesh), batched(mesh)
    return jax.jit(step, in_shardings=(same, same, spread), out_shardings=spread)
