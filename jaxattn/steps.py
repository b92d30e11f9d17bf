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
from jaxattn.losses import CrossEntropy
from jaxattn.sharding import batched, replicated
from jaxattn.state import TrainState, Variables

Arrays = Mapping[str, Array]


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
        average_decay: Decay of the moving average of the variables per step, where the state has
            one; in the first steps it is ``(1 + step) / (10 + step)`` where that is less.

    Returns:
        ``(state, data, batch) -> (state, metrics)``. The state given is donated. The metrics are
        the batch's mean loss and accuracy before the update.
    """

    def step(state: TrainState, data: Arrays, batch: Arrays):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        augment_key, dropout_key = jax.random.split(key)
        pixels, _ = augment(augment_key, images_of(data, batch), None, ranges)
        images = normalise(pixels)

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
    model: nn.Module, mesh: Mesh, *, normalise: Callable[[Array], Array], views: int = 1
) -> Callable[[Variables, Arrays, Arrays], tuple[Float[Array, "batch classes"], dict[str, Array]]]:
    """Makes the jitted ``(variables, data, batch) -> (probabilities, attention maps)``.

    Args:
        model: Called ``(images, *, train)``.
        mesh: The devices.
        normalise: Maps pixels in [0, 1] to the network's input range.
        views: 1: the image as it is; 8: the probabilities' mean over the image, its mirror image
            and their quarter turns (square images only). The maps are always those of the image as
            it is.
    """

    def step(variables: Variables, data: Arrays, batch: Arrays):
        images = normalise(images_of(data, batch).astype(jnp.float32) / 255.0)
        logits, maps = model.apply(variables, images, train=False)
        probabilities = jax.nn.softmax(logits)
        if views == 1:
            return probabilities, maps
        # One view after the other: eight at once would take eight times the memory.
        turned = lambda images, turns: jnp.rot90(images, turns, axes=(1, 2))  # noqa: E731
        others = [(images, turns) for turns in (1, 2, 3)]
        others += [(images[:, :, ::-1], turns) for turns in (0, 1, 2, 3)]
        for view, turns in others:
            logits, _ = model.apply(variables, turned(view, turns), train=False)
            probabilities += jax.nn.softmax(logits)
        return probabilities / views, maps

    same, spread = replicated(mesh), batched(mesh)
    return jax.jit(step, in_shardings=(same, same, spread), out_shardings=spread)
