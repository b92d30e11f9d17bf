"""Compares our models with the same models in Keras 3: outputs, gradients and training.

Both run in this process, on Keras' JAX backend, in float32, with the same weights (the Keras
model's, converted by ``jaxattn.convert.keras``) and the same random images. A difference is the
largest of any element, relative to the largest element of that tensor.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras
import numpy as np
import optax
from flax import linen as nn

from jaxattn import optimizers
from jaxattn.config import base
from jaxattn.convert.keras import from_layers
from jaxattn.models import registry
from references import keras_models, keras_ties, keras_weights

#: Largest differences allowed, relative to the largest element.
BOUNDS = {
    "logits": 1e-4,
    "endpoints": 1e-4,
    "gradients": 1e-3,
    "losses": 1e-3,
    "statistics": 1e-3,
    "movements": 2e-2,
    "rate": 2e-4,
}

#: The two draws of weights.
ORDINARY, AWAY = "ordinary", "away from kinks"
#: What is judged of each.
DRAWS = {ORDINARY: ("logits", "endpoints"), AWAY: ("logits", "endpoints", "gradients")}
#: Gradients that are a smaller part of their layer's than this have cancelled.
CANCELLED = 1e-3
#: Training: Datta et al.'s epsilon, and a rate at which it is not chaotic.
RATE, EPSILON, STEPS, BATCH = 1e-3, 0.1, 10, 8
#: The smallest movement that counts, relative to the largest of any array.
STILL = 1e-4
#: Models to train, and the smallest images that each accepts, for speed.
TRAINED = {
    "koefler_cnn_sa": 75,
    "resnet34_sa": 64,
    "resnet50_sa": 64,
    "irv2_sa": 107,
    "densenet201_sa": 64,
    "vgg16_sa": 64,
}

_STEM = {
    "conv_1a": "activation",
    "conv_2a": "activation_1",
    "conv_2b": "activation_2",
    "pool_3a": "max_pooling2d",
    "conv_3b": "activation_3",
    "conv_4a": "activation_4",
    "pool_5a": "max_pooling2d_1",
}
#: Layers in Keras whose names do not resemble those of our endpoints.
KERAS_NAMES: Mapping[str, str] = {
    **_STEM,
    "block8_10": "custom_scale_layer_39",
    "block8_9/branch0/conv1/bn": "batch_normalization_195",
    "block8_9/branch0/conv1/conv": "conv2d_195",
    "block17_18/branch1/conv2": "activation_146",
    "conv5_block29/conv1": "conv5_block29_1_relu",
    "conv_7b": "conv_7b_ac",  # "conv_7b" is the convolution alone
    "global_pool": "avg_pool",
    "logits": "predictions",
}
_SUFFIXES = ("_pool", "_ac", "_relu", "_out", "_concat", "")

Tree = Any


class Pair(NamedTuple):
    """A model in Keras and in Flax.

    Attributes:
        name: Name of the model.
        keras: The Keras model; returns logits.
        module: Our model.
        size: Height and width of the images in pixels.
    """

    name: str
    keras: keras.Model
    module: nn.Module
    size: int

    def converted(self, values: Mapping[str, Any]) -> Tree:
        """Our variables with the given values of the Keras variables, by path."""
        layers = [
            (type(layer).__name__, [np.asarray(values[v.path]) for v in _weights(layer)])
            for layer in self.keras.layers
            if _weights(layer)
        ]
        classes = self.keras.output.shape[-1]
        return from_layers(self.name, layers, num_classes=classes, image_size=self.size)

    def images(self, batch: int, seed: int) -> np.ndarray:
        """Random images in [-1, 1], float32 (batch, size, size, 3).

        They have structure at every scale: deep in a network, the features of noise are nearly the
        same at all positions, and max pools full of ties.
        """
        rng, shape = np.random.default_rng(seed), (batch, self.size, self.size, 3)
        grids = [rng.uniform(-1, 1, (batch, n, n, 3)) for n in (4, 16, 64, self.size)]
        scaled = [np.asarray(jax.image.resize(grid, shape, "linear")) for grid in grids]
        return np.mean(scaled, axis=0).astype(np.float32)


def _weights(layer: keras.Layer) -> list[keras.Variable]:
    return [v for v in layer.weights if "seed_generator" not in v.path]


def _zeros(self: Any, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """An initializer that compiles nothing."""
    return keras.ops.zeros(shape, dtype)


def make_pair(name: str, size: int | None = None, **options: Any) -> Pair:
    """Builds a model in Keras and in Flax; the Keras kernels are 0, to be drawn later.

    Args:
        name: A name that both ``keras_models`` and our registry know.
        size: Height and width of the images in pixels; None for the published size.
        **options: Options of ``keras_models.build``.

    Raises:
        InputError: Unknown name.
    """
    size = size or keras_models.image_size(name)
    classes = registry.find(name).num_classes
    keras.utils.clear_session()  # layer names must not depend on earlier models
    with mock.patch.object(keras.initializers.VarianceScaling, "__call__", _zeros):
        model = keras_models.build(name, classes, size=size, **options)
    return Pair(name, model, registry.create(name, classes), size)


def our_outputs(module: nn.Module, variables: Tree, images: jax.Array) -> dict[str, jax.Array]:
    """Logits, maps, and all endpoints of the backbone and outputs of the modules after it."""
    (logits, maps), state = module.apply(
        variables,
        images,
        train=False,
        capture_intermediates=lambda child, _: (
            len(child.path) == 1 and not isinstance(child, nn.Dropout)
        ),
        mutable=["intermediates"],
    )
    outputs = {**maps, "logits": logits}
    for name, child in state["intermediates"].items():
        if name == "__call__":
            continue
        (value,) = child["__call__"]
        if name == "backbone":
            _, endpoints = value
            outputs |= {k: v for k, v in endpoints.items() if not k.endswith("/maps")}
        else:
            outputs[name] = value[0] if isinstance(value, tuple) else value
    return outputs


def keras_tensor(pair: Pair, endpoint: str) -> Any:
    """The Keras tensor that corresponds to one of our endpoints."""
    layers = {layer.name: layer for layer in pair.keras.layers}
    if endpoint == getattr(pair.module, "attention_at", None):
        endpoint = "attention"
    if endpoint == "soft_attention":
        return layers[endpoint].output[1]
    names = [KERAS_NAMES.get(endpoint, endpoint), *(endpoint + suffix for suffix in _SUFFIXES)]
    return next(layers[name].output for name in names if name in layers)


class Outcome(NamedTuple):
    """The results of one implementation for one draw of weights."""

    outputs: dict[str, Any]
    image_gradient: Any
    gradients: Tree


def our_side(pair: Pair, weighting: np.ndarray) -> Callable[[np.ndarray], Outcome]:
    """Makes a function that computes ours with the Keras model's current weights."""

    @jax.jit
    def run(variables: Tree, images: jax.Array) -> Any:
        def loss(params: Tree, images: jax.Array) -> Any:
            outputs = our_outputs(pair.module, {**variables, "params": params}, images)
            return (outputs["logits"] * weighting).sum(), outputs

        return jax.grad(loss, argnums=(1, 0), has_aux=True)(variables["params"], images)

    def call(images: np.ndarray) -> Outcome:
        variables = pair.converted({v.path: v.value for v in pair.keras.variables})
        (image_gradient, gradients), outputs = run(variables, images)
        return Outcome(outputs, image_gradient, gradients)

    return call


def keras_side(
    pair: Pair, weighting: np.ndarray, endpoints: Sequence[str]
) -> Callable[[np.ndarray], Outcome]:
    """Makes a function that computes Keras' values of our endpoints, and gradients as our tree."""
    tensors = {name: keras_tensor(pair, name) for name in endpoints}
    model = keras.Model(pair.keras.input, tensors)

    @jax.jit
    def run(trainable: list, others: list, images: jax.Array) -> Any:
        def loss(trainable: list, images: jax.Array) -> Any:
            outputs, _ = model.stateless_call(trainable, others, images, training=False)
            return (outputs["logits"] * weighting).sum(), outputs

        return jax.grad(loss, argnums=(1, 0), has_aux=True)(trainable, images)

    def call(images: np.ndarray) -> Outcome:
        trainable = [v.value for v in model.trainable_variables]
        others = [v.value for v in model.non_trainable_variables]
        (image_gradient, gradients), outputs = run(trainable, others, images)
        values = {v.path: v.value for v in model.non_trainable_variables}
        values |= {v.path: g for v, g in zip(model.trainable_variables, gradients, strict=True)}
        return Outcome(outputs, image_gradient, pair.converted(values)["params"])

    return call


def difference(got: Any, wanted: Any, least: float = 0.0) -> float:
    """The largest difference relative to the largest element; inf if shapes or NaNs differ.

    Args:
        got: An array.
        wanted: The reference.
        least: Elements that are all smaller than this count as this large.
    """
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.shape != wanted.shape or not (np.isfinite(got).all() and np.isfinite(wanted).all()):
        return float("inf")
    largest = max(np.abs(wanted).max(), least)
    apart = np.abs(got - wanted).max()
    return float(apart / largest) if largest else float(apart)


def worst(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[float, str]:
    """The largest difference of any entry, and the entry."""
    return max((difference(got[name], wanted[name]), name) for name in wanted)


def by_path(tree: Tree) -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def compare_outputs(name: str, seeds: Sequence[int], batch: int, size: int | None = None) -> dict:
    """Compares the logits, all endpoints, and the gradients of a random weighted sum of logits.

    Gradients are taken with respect to the images and all parameters. Weights are drawn in two
    ways: ordinary random ones, and ones away from the kinks of ReLUs (see `keras_weights`), without
    which gradients are not comparable.

    Args:
        name: Name of the model.
        seeds: Seeds of images and weights; the worst is reported.
        batch: Number of images.
        size: Their height and width in pixels; None for the published size.

    Returns:
        A row of the results: the largest differences by draw and kind, and where they are.
    """
    began = time.monotonic()
    pair = make_pair(name, size)
    classes = pair.keras.output.shape[-1]
    weighting = np.random.default_rng(0).normal(size=classes).astype(np.float32)
    ours = our_side(pair, weighting)
    theirs = None
    row: dict[str, Any] = {"model": name, "image_size": pair.size, "batch": batch}
    row["seeds"], row["differences"] = list(seeds), {}
    for kind, away in ((ORDINARY, False), (AWAY, True)):
        for seed in seeds:
            images = pair.images(batch, seed)
            keras_weights.draw(pair.keras, images, seed, away_from_kinks=away)
            if away:
                keras_ties.break_ties(pair.keras, images, seed)
            got = ours(images)
            theirs = theirs or keras_side(pair, weighting, list(got.outputs))
            wanted = theirs(images)
            found = row["differences"].setdefault(kind, {})
            for what, (value, where) in compared(got, wanted).items():
                if what not in found or value > found[what]["difference"]:
                    found[what] = {"difference": value, "at": where}
    row["endpoints"] = len(got.outputs)
    row["parameters"] = len(by_path(got.gradients))
    row["seconds"] = round(time.monotonic() - began, 1)
    return row


def compared(got: Outcome, wanted: Outcome) -> dict[str, tuple[float, str]]:
    """The largest difference of each kind, and where it is.

    Gradients that cancel, as that of a bias before a softmax, are rounding errors: where they are
    smaller than `CANCELLED` times the largest of their layer, they count as this large.
    """
    gradients, theirs = (
        {"images": side.image_gradient, **by_path(side.gradients)} for side in (got, wanted)
    )
    layers: dict[str, float] = {}
    for path, gradient in theirs.items():
        layer = path.rpartition("/")[0]
        layers[layer] = max(layers.get(layer, 0.0), float(np.abs(gradient).max()))
    apart = {
        path: difference(gradients[path], value, CANCELLED * layers[path.rpartition("/")[0]])
        for path, value in theirs.items()
    }
    return {
        "logits": worst({"logits": got.outputs["logits"]}, {"logits": wanted.outputs["logits"]}),
        "endpoints": worst(got.outputs, wanted.outputs),
        "gradients": max((value, path) for path, value in apart.items()),
    }


class Training(NamedTuple):
    """Some steps of training.

    Attributes:
        losses: The loss of each step.
        statistics: Batch norm's moving statistics at the end.
        movements: How far each parameter moved, summed over the steps before it is rounded to the
            parameter's own precision.
        stronger: How far it would have moved with the same gradients times 1.5.
    """

    losses: list[float]
    statistics: Tree
    movements: Tree
    stronger: Tree


def compare_training(name: str, steps: int = STEPS, size: int | None = None, seed: int = 0) -> dict:
    """Compares the loss of each step, and how far parameters and moving statistics move.

    Steps are Keras' Adam on one batch, with batch norm in training mode, without dropout, from
    weights away from the kinks. The batch holds each image twice, with two labels: this keeps the
    loss above ln 2, as relative differences of a loss near 0 say nothing.

    A movement is judged relative to the largest of the same array in the reference. Biases before
    batch norm do not move: away from the kinks, batch norm cancels them. They are judged relative
    to the smallest movement that counts. Steps meet a few ties of max pools, which change some
    movements by a thousandth; so what is common to all, the ``rate``, is judged apart: by the
    median over arrays of the projection of our movement on the reference's. The row names for each
    mutation the difference that it would make in the array where it shows least.

    Args:
        name: Name of the model.
        steps: Number of steps.
        size: Height and width of the images in pixels; None for `TRAINED`'s.
        seed: Seed of images, labels and weights.

    Returns:
        A row of the results.
    """
    began = time.monotonic()
    pair = make_pair(name, size or TRAINED[name], dropout=0.0)
    images = np.repeat(pair.images(BATCH // 2, seed), 2, axis=0)
    labels = np.random.default_rng(seed).integers(0, pair.keras.output.shape[-1], BATCH)
    labels[1::2] = (labels[::2] + 1) % pair.keras.output.shape[-1]
    keras_weights.draw(pair.keras, images, seed, away_from_kinks=True, training=True)
    start = pair.converted({v.path: v.value for v in pair.keras.variables})
    ours = our_training(pair, start, images, labels, steps)
    theirs = keras_training(pair, images, labels, steps)
    return {
        "model": name,
        "image_size": pair.size,
        "batch": BATCH,
        "steps": steps,
        "rate": RATE,
        "losses": theirs.losses,
        **compared_training(ours, theirs, start["batch_stats"]),
        "seconds": round(time.monotonic() - began, 1),
    }


def compared_training(ours: Training, theirs: Training, statistics: Tree) -> dict[str, Any]:
    """The differences of two trainings, and those that mutations would make.

    Args:
        ours: Our training.
        theirs: The reference.
        statistics: Batch norm's moving statistics at the start.

    Returns:
        Fields of a row: ``differences`` by kind, the number of parameters and of those that
        ``moved``, and of each mutation the smallest difference that it makes.
    """
    got, wanted, stronger = map(by_path, (ours.movements, theirs.movements, ours.stronger))
    before, after, reference = map(by_path, (statistics, ours.statistics, theirs.statistics))
    still = STILL * max(float(np.abs(each).max()) for each in wanted.values())
    moved = [path for path in wanted if np.abs(wanted[path]).max() > still]

    def movement(mine: Any, path: str) -> float:
        return difference(mine, wanted[path], still)

    def rate(factor: float = 1) -> float:
        return abs(float(np.median([_projection(got[p], wanted[p]) for p in moved])) * factor - 1)

    found = {
        "losses": worst(_by_step(ours.losses), _by_step(theirs.losses)),
        "statistics": worst(
            {path: after[path] - before[path] for path in before},
            {path: reference[path] - before[path] for path in before},
        ),
        "movements": max((movement(got[path], path), path) for path in wanted),
        "rate": (rate(), "median"),
    }
    return {
        "differences": {
            what: {"difference": value, "at": where} for what, (value, where) in found.items()
        },
        "parameters": len(wanted),
        "moved": len(moved),
        "mutations": {
            "untrained": min(movement(0 * got[path], path) for path in moved),
            "gradient x 1.5": min(movement(stronger[path], path) for path in moved),
            "negated": min(movement(-got[path], path) for path in moved),
            "rate + 0.1%": rate(1.001),
        },
    }


def _projection(got: Any, wanted: Any) -> float:
    got, wanted = (np.asarray(each, np.float64).ravel() for each in (got, wanted))
    return float(got @ wanted / (wanted @ wanted))


def _by_step(losses: Sequence[float]) -> dict[str, float]:
    return {f"step {i}": loss for i, loss in enumerate(losses, 1)}


def our_training(
    pair: Pair, variables: Tree, images: np.ndarray, labels: np.ndarray, steps: int
) -> Training:
    """Our training, starting from these variables."""
    fields = base().optimizer
    fields.update(
        name="keras_adam", learning_rate=RATE, eps=EPSILON, schedule="constant", warmup=0.0
    )
    optimizer = optimizers.make(fields, steps)

    def no_dropout(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        return args[0] if isinstance(context.module, nn.Dropout) else call(*args, **kwargs)

    @jax.jit
    def step(variables: Tree, states: Any, moved: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Tree) -> Any:
            with nn.intercept_methods(no_dropout):
                (logits, _), updated = pair.module.apply(
                    {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
                )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated

        params = variables["params"]
        (value, updated), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        each = (gradients, jax.tree.map(lambda gradient: 1.5 * gradient, gradients))
        pairs = [optimizer.update(g, state, params) for g, state in zip(each, states, strict=True)]
        updates, states = zip(*pairs, strict=True)
        moved = jax.tree.map(jax.numpy.add, moved, updates)
        return value, {"params": optax.apply_updates(params, updates[0]), **updated}, states, moved

    params = variables["params"]
    states, moved = (optimizer.init(params),) * 2, (optax.tree.zeros_like(params),) * 2
    losses = []
    for _ in range(steps):
        value, variables, states, moved = step(variables, states, moved, images, labels)
        losses.append(float(value))
    return Training(losses, variables["batch_stats"], *moved)


def keras_training(pair: Pair, images: np.ndarray, labels: np.ndarray, steps: int) -> Training:
    """Keras' training from its current weights, its trees as ours; without ``stronger``."""
    model, optimizer = pair.keras, keras.optimizers.Adam(RATE, epsilon=EPSILON)
    optimizer.build(model.trainable_variables)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @jax.jit
    def step(trainable: list, others: list, state: list, moved: list, *batch: Any) -> Any:
        def loss(trainable: list) -> Any:
            images, labels = batch
            logits, updated = model.stateless_call(trainable, others, images, training=True)
            return crossentropy(labels, logits), updated

        (value, updated), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
        # Adam's steps do not depend on the parameters: taken from 0, they are not rounded to them.
        zeros = [jax.numpy.zeros_like(each) for each in trainable]
        steps, state = optimizer.stateless_apply(state, gradients, zeros)
        trainable, moved = (
            [each + step for each, step in zip(arrays, steps, strict=True)]
            for arrays in (trainable, moved)
        )
        return value, trainable, updated, state, moved

    trainable = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    state, losses = [v.value for v in optimizer.variables], []
    moved = [np.zeros_like(each) for each in trainable]
    for _ in range(steps):
        value, trainable, others, state, moved = step(
            trainable, others, state, moved, images, labels
        )
        losses.append(float(value))
    variables = model.trainable_variables + model.non_trainable_variables
    arrays = [*moved, *others]
    tree = pair.converted({v.path: a for v, a in zip(variables, arrays, strict=True)})
    return Training(losses, tree["batch_stats"], tree["params"], {})


def problems(row: Mapping[str, Any]) -> list[str]:
    """What is wrong with a row: a failure, differences beyond their bound, mutations not found."""
    if "failed" in row:
        return [f"failed: {row['failed']}"]
    kinds: dict[tuple[str, str], Mapping[str, Any]] = {}
    for kind, found in row["differences"].items():
        if kind in DRAWS:
            kinds |= {(what, f"{what}, {kind}"): found[what] for what in DRAWS[kind]}
        else:
            kinds[kind, kind] = found
    beyond = [title for (what, title), found in kinds.items() if not within(what, found)]
    unseen = [
        mutation
        for mutation, difference in row.get("mutations", {}).items()
        if not difference > BOUNDS["rate" if mutation.startswith("rate") else "movements"]
    ]
    return [
        *(f"exceeds the bound of {title}" for title in beyond),
        *(f"would not find {mutation}" for mutation in unseen),
    ]


def within(what: str, found: Mapping[str, Any]) -> bool:
    """Whether a difference of a kind is within its bound; NaN is not."""
    return bool(found["difference"] <= BOUNDS[what])
