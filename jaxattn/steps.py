"""The training step and the prediction step: jitted functions of (state, data, batch).

``data`` holds what stays on the device for the whole run: all images as uint8 ``(N, H, W, 3)``
under ``image`` if the data set fits there, and all masks under ``mask`` if the loss needs them; or
nothing. On a TPU these are `packed <jaxattn.data.packed.Packed>`. ``batch`` holds what changes:
``row`` and ``label`` of each example, ``image`` and ``mask`` where ``data`` has none, ``has_mask``,
and ``metadata`` if the model takes them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Key, Shaped, UInt8

from jaxattn.data.crops import Crops
from jaxattn.data.mixing import Mixing, mean_of_labels
from jaxattn.data.packed import Packed
from jaxattn.freezing import Frozen
from jaxattn.models.backbones.base import ENDPOINT
from jaxattn.models.layers import batch_norm_groups
from jaxattn.runtime import compilation
from jaxattn.runtime.devices import batched, replicated
from jaxattn.saliency import ClassActivation
from jaxattn.state import TrainState, Variables

Arrays = Mapping[str, Array]
#: What stays on the device.
Data = Mapping[str, Array | Packed]
#: ``(key, images, masks or None) -> (network input, masks or None)``.
TrainingPreprocess = Callable[[Key[Array, ""], Array, Array | None], tuple[Array, Array | None]]
#: ``(logits, maps, batch) -> (loss, metrics)``, see `jaxattn.losses.Loss`.
LossFunction = Callable[[Array, Arrays, Arrays], tuple[Array, dict[str, Array]]]
#: ``(variables, uint8 images, *metadata) -> (probabilities, maps)``, see `make_predict`.
Predict = Callable[..., tuple[Array, dict[str, Array]]]


def pixels(field: str, data: Data, batch: Arrays) -> UInt8[Array, "batch height width *channels"]:
    """The batch's ``image`` or ``mask``: on the device, or sent with the batch."""
    return data[field][batch["row"]] if field in data else batch[field]


def metadata_of(batch: Arrays) -> tuple[Float[Array, "batch fields"], ...]:
    """What the model takes after the images: the batch's metadata, or nothing."""
    return (batch["metadata"],) if "metadata" in batch else ()


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    preprocess: TrainingPreprocess,
    loss_fn: LossFunction,
    mesh: Mesh,
    *,
    seed: int,
    mixing: Mixing = Mixing(),
    ema_decay: float = 0.0,
    skip_nonfinite: bool = False,
    accumulate: int = 1,
    groups: int = 1,
    remat: bool = False,
    frozen: Frozen = Frozen(),
) -> Callable[[TrainState, Data, Arrays], tuple[TrainState, dict[str, Shaped[Array, ""]]]]:
    """Makes the jitted step: preprocess, forward, loss, backward and update in one program.

    Args:
        model: Called ``(images, *metadata, train=True)``; returns logits and attention maps.
        optimizer: Turns gradients into updates.
        preprocess: Augments, crops and normalises images, and moves masks with them.
        loss_fn: Its ``batch`` holds the preprocessed ``mask``.
        mesh: The state is replicated over its devices, the batch split over them.
        seed: All random numbers of a step are a pure function of (seed, step).
        mixing: How the preprocessed images are mixed; loss and accuracy are means over both labels.
        ema_decay: Decay of the EMA per step, if the state has one; ``(1 + step) / (10 + step)``
            in the first steps, while that is smaller.
        skip_nonfinite: Whether a step changes nothing but the number of steps if its loss, a
            gradient or a new parameter is not finite.
        accumulate: Parts of a batch that run one after the other, each with its own batch
            statistics; gradients and metrics are their means.
        groups: Parts of what runs at once whose batch statistics are their own, see
            `jaxattn.models.layers.batch_norm_groups`; 1: those of the global batch.
        remat: Whether the backward pass recomputes what lies between a backbone's endpoints.
        frozen: Layers that are left as they are, in the EMA too.

    Returns:
        ``(state, data, batch) -> (state, metrics)``. The given state is donated. The metrics are
        those of ``loss_fn`` and the accuracy, before the update; and whether the loss and all
        gradients are ``finite``.
    """
    gradients_of = _make_gradients(model, loss_fn, frozen, groups=groups, remat=remat)

    def step(state: TrainState, data: Data, batch: Arrays):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        images, batch = _network_inputs(key, data, batch, preprocess, mixing)
        trained = frozen.trained(state.params)
        if accumulate > 1:
            gradients, (metrics, batch_stats) = _accumulated(
                gradients_of, accumulate, state, trained, key, images, batch
            )
        else:
            gradients, (metrics, batch_stats) = gradients_of(
                state.params, state.batch_stats, dropout_key(key), images, batch
            )
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        params = frozen.joined(optax.apply_updates(trained, updates), state.params)
        ema = _averaged(state, params, batch_stats, ema_decay, frozen)
        metrics["finite"] = all_finite((metrics["loss"], gradients))
        new_state = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
        if skip_nonfinite:
            metrics["finite"] &= all_finite(new_state)
            kept = state.replace(step=new_state.step)
            new_state = jax.tree.map(
                lambda new, old: jnp.where(metrics["finite"], new, old), new_state, kept
            )
        return new_state, metrics

    same, split = replicated(mesh), batched(mesh)
    return jax.jit(
        step,
        in_shardings=(same, same, split),
        out_shardings=(same, same),
        donate_argnums=0,
        compiler_options=compilation.options(mesh.devices.flat[0].platform),
    )


def _network_inputs(
    key: Key[Array, ""],
    data: Data,
    batch: Arrays,
    preprocess: TrainingPreprocess,
    mixing: Mixing,
) -> tuple[Array, Arrays]:
    """The preprocessed and mixed images, and the batch with their masks and labels."""
    masked = "mask" in data or "mask" in batch
    masks = pixels("mask", data, batch) if masked else None
    with jax.named_scope("preprocess"):
        images, masks = preprocess(key, pixels("image", data, batch), masks)
    if masks is not None:
        batch = {**batch, "mask": masks}
    return mixing(mixing_key(key), images, batch)


def _make_gradients(
    model: nn.Module, loss_fn: LossFunction, frozen: Frozen, *, groups: int, remat: bool
) -> Callable[..., Any]:
    """Makes the function that takes the gradients of the loss by the parameters that are trained.

    Returns:
        ``(params, batch_stats, dropout, images, batch) -> (gradients, (metrics, batch_stats))``,
        ``dropout`` a random key.
    """

    def gradients_of(params: Any, batch_stats: Any, dropout: Any, images: Any, batch: Arrays):
        def network(params: Any, *inputs: Any):
            with frozen.running(), batch_norm_groups(groups):
                return model.apply(
                    {"params": params, "batch_stats": batch_stats},
                    *inputs,
                    train=True,
                    rngs={"dropout": dropout},
                    mutable=["batch_stats"],
                )

        if remat:
            kept = jax.checkpoint_policies.save_only_these_names(ENDPOINT)
            network = jax.checkpoint(network, policy=kept)

        def loss_of(trained: Any):
            (logits, maps), changed = network(
                frozen.joined(trained, params), images, *metadata_of(batch)
            )

            def measure(batch: Arrays):
                loss, metrics = loss_fn(logits, maps, batch)
                return loss, metrics | {"accuracy": jnp.mean(logits.argmax(-1) == batch["label"])}

            loss, metrics = mean_of_labels(measure, batch)
            return loss, (metrics, changed.get("batch_stats", {}))

        return jax.grad(loss_of, has_aux=True)(frozen.trained(params))

    return gradients_of


def _averaged(
    state: TrainState, params: Any, batch_stats: Any, ema_decay: float, frozen: Frozen
) -> Any:
    """The EMA after a step to these parameters and batch statistics; None if there is none."""
    if state.ema is None:
        return None
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    new = {"params": params, "batch_stats": batch_stats}

    def moved(kind: str, old: Any) -> Any:
        # A mean of equal numbers is not always that number.
        mean = optax.incremental_update(frozen.trained(new[kind]), frozen.trained(old), 1 - decay)
        return frozen.joined(mean, old)

    return {kind: moved(kind, old) for kind, old in state.ema.items()}


def _accumulated(
    gradients_of: Callable[..., Any],
    parts: int,
    state: TrainState,
    trained: Any,
    key: Key[Array, ""],
    images: Array,
    batch: Arrays,
) -> tuple[Any, Any]:
    """Mean gradients and metrics over the parts of a batch, and the last batch statistics.

    Part i has the examples i, i + parts, i + 2 parts, …: as many of each device.
    """
    small = {name: array for name, array in batch.items() if name != "image"}
    of_part = jax.tree.map(
        lambda array: array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1), (images, small)
    )

    def run(carried: Any, given: Any):
        total, batch_stats = carried
        index, (images, batch) = given
        dropout = jax.random.fold_in(dropout_key(key), index)
        gradients, (metrics, batch_stats) = gradients_of(
            state.params, batch_stats, dropout, images, batch
        )
        return (jax.tree.map(jnp.add, total, gradients), batch_stats), metrics

    start = jax.tree.map(jnp.zeros_like, trained), state.batch_stats
    (total, batch_stats), metrics = jax.lax.scan(run, start, (jnp.arange(parts), of_part))
    mean = jax.tree.map(lambda gradient: gradient / parts, total)
    return mean, (jax.tree.map(lambda values: values.mean(0), metrics), batch_stats)


def make_predict(
    model: nn.Module,
    preprocess: Callable[[Array], Array],
    *,
    crops: Crops,
    tta: int = 1,
    saliency: Mapping[str, ClassActivation] | None = None,
) -> Predict:
    """Makes ``(variables, images, *metadata) -> (probabilities, maps)``; the images are uint8.

    Args:
        model: Called ``(images, *metadata, train=False)``.
        preprocess: Crops and normalises uint8 images.
        crops: Joins the probabilities and places the maps of an image's crops.
        tta: 1, or 8 for test-time augmentation: the mean probabilities over flips and quarter turns
            of square images. Maps are always those of the image itself.
        saliency: Class activation maps to add, by name.
    """

    def once(variables: Variables, images: Array, metadata: Any) -> tuple[Array, dict[str, Array]]:
        logits, maps = model.apply(variables, preprocess(images), *metadata, train=False)
        return crops.combine(jax.nn.softmax(logits)), dict(maps)

    def predict(variables: Variables, images: Array, *metadata: Array):
        probabilities, maps = once(variables, images, metadata)
        for name, explain in (saliency or {}).items():
            maps[name] = explain(model, variables, preprocess(images), *metadata)
        maps = {name: crops.on_image(each, *images.shape[1:3]) for name, each in maps.items()}
        if tta == 1:
            return probabilities, maps
        # One after the other: eight at once would need eight times the memory.
        turned = [(images, turns) for turns in (1, 2, 3)]
        turned += [(images[:, :, ::-1], turns) for turns in (0, 1, 2, 3)]
        for view, turns in turned:
            probabilities += once(variables, jnp.rot90(view, turns, axes=(1, 2)), metadata)[0]
        return probabilities / tta, maps

    return predict


def make_predict_step(
    predict: Predict, mesh: Mesh
) -> Callable[[Variables, Data, Arrays], tuple[Float[Array, "batch classes"], dict[str, Array]]]:
    """Makes the jitted ``(variables, data, batch) -> (probabilities, maps)``.

    Args:
        predict: See `make_predict`.
        mesh: The devices.
    """

    def step(variables: Variables, data: Data, batch: Arrays):
        return predict(variables, pixels("image", data, batch), *metadata_of(batch))

    same, split = replicated(mesh), batched(mesh)
    return jax.jit(
        step,
        in_shardings=(same, same, split),
        out_shardings=split,
        compiler_options=compilation.options(mesh.devices.flat[0].platform),
    )


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether no floating-point number of a tree is NaN or infinite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


def dropout_key(key: Key[Array, ""]) -> Key[Array, ""]:
    """The part of a step's key that preprocessing leaves to dropout."""
    return jax.random.split(key, 3)[1]


def mixing_key(key: Key[Array, ""]) -> Key[Array, ""]:
    """A part of a step's key that is none of the three of preprocessing."""
    return jax.random.fold_in(key, 3)
