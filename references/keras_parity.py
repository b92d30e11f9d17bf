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
    "parameters": 1e-2,
}

#: The two draws of weights.
ORDINARY, AWAY = "ordinary", "away from kinks"
#: Datta et al.'s Adam.
RATE, EPSILON = 0.01, 0.1
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
        """Random images in [-1, 1], float32 (batch, size, size, 3)."""
        shape = (batch, self.size, self.size, 3)
        return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


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


def difference(got: Any, wanted: Any) -> float:
    """The largest difference relative to the largest element; inf if shapes or NaNs differ."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.shape != wanted.shape or not (np.isfinite(got).all() and np.isfinite(wanted).all()):
        return float("inf")
    largest = np.abs(wanted).max()
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
    """The largest difference of each kind, and where it is."""
    gradients, theirs = (
        {"images": side.image_gradient, **by_path(side.gradients)} for side in (got, wanted)
    )
    return {
        "logits": worst({"logits": got.outputs["logits"]}, {"logits": wanted.outputs["logits"]}),
        "endpoints": worst(got.outputs, wanted.outputs),
        "gradients": worst(gradients, theirs),
    }


def compare_training(name: str, steps: int, batch: int, size: int, seed: int = 0) -> dict:
    """Compares the loss of each step, and moving statistics and parameters after the last.

    Steps are Datta et al.'s Adam(0.01, epsilon 0.1) on one batch, with batch norm in training mode,
    without dropout, from weights away from the kinks. The batch holds each image twice, with two
    labels: this keeps the loss above ln 2, as relative differences of a loss near 0 say nothing.

    Args:
        name: Name of the model.
        steps: Number of steps.
        batch: Number of images in the batch.
        size: Their height and width in pixels.
        seed: Seed of images, labels and weights.

    Returns:
        A row of the results.
    """
    began = time.monotonic()
    pair = make_pair(name, size, dropout=0.0)
    images = np.repeat(pair.images(batch // 2, seed), 2, axis=0)
    labels = np.random.default_rng(seed).integers(0, pair.keras.output.shape[-1], batch)
    labels[1::2] = (labels[::2] + 1) % pair.keras.output.shape[-1]
    keras_weights.draw(pair.keras, images, seed, away_from_kinks=True, training=True)
    start = pair.converted({v.path: v.value for v in pair.keras.variables})
    got, ours = our_training(pair, start, images, labels, steps)
    wanted, theirs = keras_training(pair, images, labels, steps)
    found = {
        "losses": worst(_by_step(got), _by_step(wanted)),
        "statistics": worst(by_path(ours["batch_stats"]), by_path(theirs["batch_stats"])),
        "parameters": worst(by_path(ours["params"]), by_path(theirs["params"])),
    }
    return {
        "model": name,
        "image_size": size,
        "batch": batch,
        "steps": steps,
        "losses": wanted,
        "differences": {
            what: {"difference": value, "at": where} for what, (value, where) in found.items()
        },
        "seconds": round(time.monotonic() - began, 1),
    }


def _by_step(losses: Sequence[float]) -> dict[str, float]:
    return {f"step {i}": loss for i, loss in enumerate(losses, 1)}


def our_training(
    pair: Pair, variables: Tree, images: np.ndarray, labels: np.ndarray, steps: int
) -> tuple[list[float], Tree]:
    """Our loss at each step, starting from these variables, and the variables at the end."""
    fields = base().optimizer
    fields.update(
        name="keras_adam", learning_rate=RATE, eps=EPSILON, schedule="constant", warmup=0.0
    )
    optimizer = optimizers.make(fields, steps)

    def no_dropout(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        return args[0] if isinstance(context.module, nn.Dropout) else call(*args, **kwargs)

    @jax.jit
    def step(variables: Tree, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Tree) -> Any:
            with nn.intercept_methods(no_dropout):
                (logits, _), updated = pair.module.apply(
                    {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
                )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated

        params = variables["params"]
        (value, updated), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return value, {"params": optax.apply_updates(params, updates), **updated}, state

    state, losses = optimizer.init(variables["params"]), []
    for _ in range(steps):
        value, variables, state = step(variables, state, images, labels)
        losses.append(float(value))
    return losses, variables


def keras_training(
    pair: Pair, images: np.ndarray, labels: np.ndarray, steps: int
) -> tuple[list[float], Tree]:
    """Keras' loss at each step from its current weights, and its variables at the end as ours."""
    model, optimizer = pair.keras, keras.optimizers.Adam(RATE, epsilon=EPSILON)
    optimizer.build(model.trainable_variables)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @jax.jit
    def step(trainable: list, others: list, state: list, images: Any, labels: Any) -> Any:
        def loss(trainable: list) -> Any:
            logits, updated = model.stateless_call(trainable, others, images, training=True)
            return crossentropy(labels, logits), updated

        (value, updated), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
        return value, *optimizer.stateless_apply(state, gradients, trainable), updated

    trainable = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    state, losses = [v.value for v in optimizer.variables], []
    for _ in range(steps):
        value, trainable, state, others = step(trainable, others, state, images, labels)
        losses.append(float(value))
    variables = model.trainable_variables + model.non_trainable_variables
    arrays = [*trainable, *others]
    return losses, pair.converted({v.path: a for v, a in zip(variables, arrays, strict=True)})


def exceeded(row: Mapping[str, Any]) -> list[str]:
    """The kinds of a row's differences that exceed their bound or are NaN."""
    differences = row["differences"]
    if "losses" in differences:
        judged = differences
    else:
        gradients = differences[AWAY]["gradients"]
        judged = {**differences[ORDINARY], "gradients": gradients}
    return [what for what, found in judged.items() if not found["difference"] <= BOUNDS[what]]
