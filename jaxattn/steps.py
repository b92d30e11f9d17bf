"""The training step and the evaluation step, each one jitted function of (state, data, batch).

``data`` holds what stays on the device for the whole run: the images, where the data set fits there
(``{"image": (N, H, W, 3)}``), or nothing. ``batch`` holds what comes anew in each step: the row of
each example, its label and, where ``data`` has none, its image. Where the loss wants masks,
``mask`` lies beside ``image``, and ``has_mask`` comes with the batch.
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
from jaxattn.losses import CrossEntropy, MapDice
from jaxattn.runtime import compilation
from jaxattn.runtime.devices import batched, replicated
from jaxattn.saliency import ClassActivation
from jaxattn.state import TrainState, Variables

Arrays = Mapping[str, Array]

#: The image as it is.
WHOLE = Crops()


def pixels_of(
    field: str, data: Arrays, batch: Arrays
) -> UInt8[Array, "batch height width *channels"]:
    """The batch's ``image`` or ``mask``: sent with it, or read from those on the device."""
    return data[field][batch["row"]] if field in data else batch[field]


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
    map_loss: MapDice | None = None,
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
        map_loss: Loss of attention maps and masks, added to the other one. Each mask moves with
            its image through augmentation and crops.
        average_decay: Decay of the moving average of the variables per step, where the state has
            one; in the first steps it is ``(1 + step) / (10 + step)`` where that is less.

    Returns:
        ``(state, data, batch) -> (state, metrics)``. The state given is donated. The metrics are
        the batch's mean loss and accuracy before the update, and with ``map_loss`` that alone.
    """

    def step(state: TrainState, data: Arrays, batch: Arrays):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        augment_key, dropout_key, crop_key = jax.random.split(key, 3)
        masks = pixels_of("mask", data, batch) if map_loss else None
        pixels, masks = augment(augment_key, pixels_of("image", data, batch), masks, ranges)
        if masks is not None:  # a fourth channel, so that both are cut alike
            pixels = jnp.concatenate([pixels, masks[..., None].astype(pixels.dtype)], axis=-1)
        pixels = crops.training(crop_key, pixels)
        images = normalise(pixels[..., :3])

        def loss_of(params: Any):
            (logits, maps), changed = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )
            metrics = {
                "loss": loss(logits, batch["label"], batch["row"]),
                "accuracy": jnp.mean(logits.argmax(-1) == batch["label"]),
            }
            if map_loss:
                metrics["map_loss"] = map_loss(maps, pixels[..., 3], batch["has_mask"])
                metrics["loss"] += metrics["map_loss"]
            return metrics["loss"], (metrics, changed.get("batch_stats", {}))

        (_, (metrics, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            decay = jnp.minimum(average_decay, (1 + state.step) / (10 + state.step))
            new = {"params": params, "batch_stats": batch_stats}
            average = optax.incremental_update(new, average, 1 - decay)
        return TrainState(state.step + 1, params, batch_stats, opt_state, average), metrics

    same, spread = replicated(mesh), batched(mesh)
    return jax.jit(
        step,
        in_shardings=(same, same, spread),
        out_shardings=(same, same),
        donate_argnums=0,
        compiler_options=compilation.options(mesh.devices.flat[0].platform),
    )


def make_predict_step(
    model: nn.Module,
    mesh: Mesh,
    *,
    normalise: Callable[[Array], Array],
    views: int = 1,
    crops: Crops = WHOLE,
    saliency: Mapping[str, ClassActivation] | None = None,
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
        saliency: Further maps to compute, by name.
    """

    def probabilities_of(variables: Variables, pixels: Array) -> tuple[Array, dict[str, Array]]:
        logits, maps = model.apply(variables, inputs_of(pixels), train=False)
        return crops.combine(jax.nn.softmax(logits)), dict(maps)

    def inputs_of(pixels: Array) -> Array:
        return normalise(crops.evaluation(pixels))

    def step(variables: Variables, data: Arrays, batch: Arrays):
        pixels = pixels_of("image", data, batch).astype(jnp.float32) / 255.0
        probabilities, maps = probabilities_of(variables, pixels)
        for name, explain in (saliency or {}).items():
            maps[name] = explain(model, variables, inputs_of(pixels))
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
    return jax.jit(
        step,
        in_shardings=(same, same, spread),
        out_shardings=spread,
        compiler_options=compilation.options(mesh.devices.flat[0].platform),
    )
