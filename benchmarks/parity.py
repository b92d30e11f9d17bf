"""Our models against the same models in Keras 3: outputs, gradients and training.

    python benchmarks/parity.py [--models=irv2_sa,resnet34] [--out=benchmarks/results/parity.json]
    python benchmarks/parity.py --training [--models=...] [--out=...]

Both run here, on the JAX backend of Keras, in float32 on the CPU, with the same weights (the Keras
model's, converted by ``jaxattn.convert.keras``) and the same random images. Every difference is the
largest one of any element, relative to the largest element of that tensor.

Without ``--training``: the logits, every endpoint on the way to them, and the gradients of a
randomly weighted sum of logits with respect to the images and all parameters. The first two with
ordinary random weights, all three with weights that keep clear of the kinks of ReLUs (see
``peers/keras_weights.py``), each for several seeds, of which the worst is reported.

With ``--training``: the loss at each of 20 steps of Adam(0.01, epsilon 0.1), Datta et al.'s, on one
batch, with batch norm in training mode and without dropout, from weights clear of the kinks; and
batch norm's moving statistics and all parameters after them. The batch has each image twice, with
two labels: the loss stays above ln 2, for near 0 a relative difference says nothing.

Results go into a JSON file, in the place of earlier ones of the same models. Exit status 1 says
that a bound is exceeded.
"""

import functools
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import keras
import numpy as np
import optax
from absl import flags
from flax import linen as nn

from benchmarks import measure
from benchmarks.peers import keras_models, keras_ties, keras_weights
from jaxattn import optimizers, run_dir
from jaxattn.config import base
from jaxattn.convert.keras import from_layers
from jaxattn.errors import InputError, suggestion
from jaxattn.cli import run_main
from jaxattn.models import registry

NAME = "parity"

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
#: Models to train, and the size of the images: as small as the network bears, for speed.
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
#: Our endpoints whose layers in Keras have names that do not resemble them.
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
    """A model twice.

    Attributes:
        name: Name of the model.
        keras: The Keras model, to logits.
        module: Ours.
        size: Height and width of the images.
    """

    name: str
    keras: keras.Model
    module: nn.Module
    size: int

    def converted(self, values: Mapping[str, Any]) -> Tree:
        """Our variables of values for the Keras variables, by their paths."""
        layers = [
            (type(layer).__name__, [np.asarray(values[v.path]) for v in _weights(layer)])
            for layer in self.keras.layers
            if _weights(layer)
        ]
        classes = self.keras.output.shape[-1]
        return from_layers(self.name, layers, num_classes=classes, image_size=self.size)

    def images(self, batch: int, seed: int) -> np.ndarray:
        """Random images from -1 to 1."""
        shape = (batch, self.size, self.size, 3)
        return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def _weights(layer: keras.Layer) -> list[keras.Variable]:
    return [v for v in layer.weights if "seed_generator" not in v.path]


def _zeros(self: Any, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """An initializer for which nothing needs to be compiled."""
    return keras.ops.zeros(shape, dtype)


def make_pair(name: str, size: int | None = None, **options: Any) -> Pair:
    """Builds a model twice; the Keras model's kernels are 0, to be drawn later.

    Args:
        name: A model of both ``keras_models`` and the registry.
        size: Height and width of the images; as published if not given.
        **options: Of ``keras_models.build``.

    Returns:
        Both models.

    Raises:
        InputError: There is no model of that name.
    """
    size = size or keras_models.image_size(name)
    classes = registry.find(name).num_classes
    keras.utils.clear_session()  # So that the names of layers do not depend on earlier models.
    with mock.patch.object(keras.initializers.VarianceScaling, "__call__", _zeros):
        model = keras_models.build(name, classes, size=size, **options)
    return Pair(name, model, registry.build(name, classes), size)


def our_outputs(module: nn.Module, variables: Tree, images: jax.Array) -> dict[str, jax.Array]:
    """Logits, maps, and every endpoint of the backbone and output of the modules after it."""
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
    """The Keras model's tensor that is an endpoint of ours."""
    layers = {layer.name: layer for layer in pair.keras.layers}
    if endpoint == getattr(pair.module, "attention_at", None):
        endpoint = "attention"
    if endpoint == "soft_attention":
        return layers[endpoint].output[1]
    names = [KERAS_NAMES.get(endpoint, endpoint), *(endpoint + suffix for suffix in _SUFFIXES)]
    return next(layers[name].output for name in names if name in layers)


class Outcome(NamedTuple):
    """What one side returns for one draw of weights."""

    outputs: dict[str, Any]
    image_gradient: Any
    gradients: Tree


def our_side(pair: Pair, weighting: np.ndarray) -> Callable[[np.ndarray], Outcome]:
    """Our outputs and gradients with the Keras model's present weights."""

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
    """Keras' outputs of our endpoints and its gradients, as our parameters."""
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
    """The largest difference relative to the largest element; inf if not finite."""
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
    """Compares outputs and gradients.

    Args:
        name: Name of the model.
        seeds: Of images and weights.
        batch: Number of images.
        size: Their height and width; as published if not given.

    Returns:
        A row of the results: largest differences by draw and kind, and where they are.
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
    """Compares losses step by step, and moving statistics and parameters at the end.

    Args:
        name: Name of the model.
        steps: How many steps to take.
        batch: Number of images of each.
        size: Their height and width.
        seed: Of images, labels and weights.

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
    """Our losses of training from these variables, and the variables at the end."""
    fields = base().optimizer
    fields.update(
        name="keras_adam", learning_rate=RATE, eps=EPSILON, schedule="constant", warmup=0.0
    )
    optimizer = optimizers.build(fields, steps)

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
    """Keras' losses from its present weights, and its variables at the end, as ours."""
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
    values = zip(model.trainable_variables, trainable, strict=True)
    values = {v.path: value for v, value in values}
    values |= {v.path: o for v, o in zip(model.non_trainable_variables, others, strict=True)}
    return losses, pair.converted(values)


def exceeded(row: Mapping[str, Any]) -> list[str]:
    """What of a row is beyond its bound, or is not a number."""
    differences = row["differences"]
    if "losses" in differences:
        judged = differences
    else:
        gradients = differences[AWAY]["gradients"]
        judged = {**differences[ORDINARY], "gradients": gradients}
    return [what for what, found in judged.items() if not found["difference"] <= BOUNDS[what]]


def _cell(found: Mapping[str, Any], bound: float) -> str:
    text = f"{found['difference']:.1e}"
    return text if found["difference"] <= bound else f"**{text}**"


def _output_cells(row: Mapping[str, Any]) -> list[str]:
    ordinary, away = (row["differences"][draw] for draw in (ORDINARY, AWAY))
    return [
        row["model"],
        f"{row['image_size']}, {row['batch']}",
        f"{row['endpoints']}",
        f"{row['parameters']}",
        *(_cell(ordinary[what], BOUNDS[what]) for what in ("logits", "endpoints")),
        *(_cell(away[what], BOUNDS[what]) for what in ("logits", "endpoints", "gradients")),
    ]


def _training_cells(row: Mapping[str, Any]) -> list[str]:
    found = row["differences"]
    return [
        row["model"],
        f"{row['image_size']}, {row['batch']}",
        f"{row['losses'][0]:.3f} → {row['losses'][-1]:.3f}",
        *(_cell(found[what], BOUNDS[what]) for what in ("losses", "statistics", "parameters")),
    ]


TABLES = {
    "outputs": (
        _output_cells,
        ["model", "size, batch", "endpoints", "parameters"]
        + [f"{what}, ordinary" for what in ("logits", "endpoints")]
        + [f"{what}, away" for what in ("logits", "endpoints", "gradients")],
        "Largest difference of any element from Keras, relative to the largest element of that "
        "tensor, over seeds {seeds}: of the logits, of all endpoints, of the gradients with "
        "respect to the images and every parameter. Ordinary: random weights; away: random "
        "weights that keep clear of the kinks of ReLUs, without which gradients are not "
        "comparable. Bounds: logits and endpoints {endpoints}, gradients {gradients}.",
    ),
    "training": (
        _training_cells,
        ["model", "size, batch", "Keras' loss", "losses", "statistics", "parameters"],
        "Training: {steps} steps of Adam({rate}, epsilon {epsilon}) on one batch, batch norm in "
        "training mode, no dropout, weights clear of the kinks; Keras' loss at the first and the "
        "last step. Largest relative difference of the loss at any step, and at the end of batch "
        "norm's moving statistics and of all parameters, relative to the largest element. Bounds: "
        "losses {losses}, statistics {statistics}, parameters {parameters}.",
    ),
}


def table(results: Mapping[str, Any]) -> str:
    """Markdown of all results; what exceeds its bound is bold."""
    lines = []
    for kind, (cells, header, caption) in TABLES.items():
        rows = results.get(kind, {}).values()
        if not rows:
            continue
        first = next(iter(rows))
        facts = {**BOUNDS, "rate": RATE, "epsilon": EPSILON, "steps": first.get("steps")}
        facts["seeds"] = " and ".join(map(str, first.get("seeds", ())))
        lines += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
        lines += ["", caption.format(**facts), ""]
    return "\n".join([*lines, "All in float32."]) + "\n"


def add(out: Path, kind: str, rows: Sequence[dict]) -> None:
    """Puts rows into the result file and writes its tables again."""
    results = json.loads(out.read_text()) if out.is_file() else {}
    machine = measure.machine()
    machine["versions"]["keras"] = keras.__version__
    results |= {"benchmark": NAME, "command": "python benchmarks/parity.py", "machine": machine}
    results["bounds"] = BOUNDS
    results.setdefault(kind, {}).update({row["model"]: row for row in rows})
    known = list(keras_models.names())
    results[kind] = dict(sorted(results[kind].items(), key=lambda row: known.index(row[0])))
    run_dir.write_json(out, results)


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    training = flags.FLAGS.training
    known = list(TRAINED if training else keras_models.names())
    names = flags.FLAGS.models or known
    for name in names:
        if name not in known:
            raise InputError(f"--models: {name!r} given{suggestion(name, known)}")
    failed = False
    for name in names:
        size, batch = flags.FLAGS.size, flags.FLAGS.batch
        if training:
            row = compare_training(name, flags.FLAGS.steps, batch or 8, size or TRAINED[name])
        else:
            row = compare_outputs(name, range(flags.FLAGS.seeds), batch or 1, size)
        add(Path(flags.FLAGS.out), "training" if training else "outputs", [row])
        beyond = exceeded(row)
        failed |= bool(beyond)
        print(f"{name}: {'exceeds ' + ', '.join(beyond) if beyond else 'ok'}", flush=True)
        jax.clear_caches()  # Each model's programs are large, and none is used again.
        gc.collect()
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    out = Path(__file__).parent / "results" / "parity.json"
    flags.DEFINE_list("models", [], "Names of the models; all without.")
    flags.DEFINE_string("out", str(out), "The JSON file of results.")
    flags.DEFINE_bool("training", False, "Compare training instead of outputs and gradients.")
    count = functools.partial(flags.DEFINE_integer, lower_bound=1)
    count("size", None, "Height and width of the images; without, as published.")
    count("batch", None, "Images in a batch; without, 1, or 8 in training.")
    count("seeds", 2, "How many draws of weights and images to compare outputs of.")
    count("steps", 20, "How many steps to train.")
    run_main(main)
