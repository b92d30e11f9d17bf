"""Our own training steps, in a process of their own as those of all peers.

    python benchmarks/peers/jaxattn_step.py

is asked by ``benchmarks/train_step.py`` on its standard input. The step is the one that
``jaxattn.train`` takes: it reads its images, bytes, from those that are on the device, augments and
normalises them as the model's config says, and donates its state.
"""

import importlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from benchmarks.peers.steps import Ready, serve_steps
from jaxattn import experiment, run_dir
from jaxattn.convert.keras import from_layers
from jaxattn.runtime import devices


def config_of(model: str, batch: int, dtype: str, size: int) -> ConfigDict:
    """The published config of a model, on the embedded data set at any size."""
    file = "koefler2023" if model.startswith("koefler") else "datta2021"
    module = importlib.import_module(f"configs.{file}")
    config = module.get_config(model.removeprefix("koefler_"))
    config.dataset.update(name="synthetic", image_size=size, num_images=1400)
    config.split.strategy = "lesion"
    config.batch_size, config.dtype = batch, dtype
    return config


def forward_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations in the products and convolutions of a function, two for each multiplication.

    Taps that meet padding count. Where it depends on the platform, the way with the least counts.
    """
    return 2 * _multiplications(jax.make_jaxpr(function)(*arguments).jaxpr)


def _multiplications(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        shapes = [variable.aval.shape for variable in equation.invars if hasattr(variable, "aval")]
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            terms = math.prod(shapes[0][axis] for axis in contracted)
            total += terms * math.prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            _, channels, *window = parameters["dimension_numbers"].rhs_spec
            terms = math.prod(shapes[1][axis] for axis in (channels, *window))
            total += terms * math.prod(equation.outvars[0].aval.shape)
        else:
            inner = [_multiplications(each) for each in _inside(parameters)]
            times = parameters.get("length", 1) if name == "scan" else 1
            total += times * (min(inner, default=0) if name == "cond" else sum(inner))
    return total


def _inside(parameters: dict[str, Any]) -> Iterator[Any]:
    """The functions that an equation calls."""
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                yield inner


def model_flops(built: experiment.Experiment, size: int) -> int:
    """Operations that a step needs: three times those of a forward pass of the model."""
    variables = jax.eval_shape(built.initial_state).variables
    images = jax.ShapeDtypeStruct((built.config.batch_size, size, size, 3), jnp.float32)
    return 3 * forward_flops(lambda v, x: built.model.apply(v, x, train=False), variables, images)


def prepare(question: dict[str, Any]) -> Ready:
    """Compiles the step of the model ``model``, on images of the file ``inputs``."""
    with np.load(question["inputs"]) as file:
        images, labels = file["images"], file["labels"]
    size, batch = images.shape[1], len(images)
    built = experiment.build(config_of(question["model"], batch, question["dtype"], size))
    data = devices.put_replicated(built.mesh, {"image": images})
    rows = np.arange(batch, dtype=np.int32)
    inputs = devices.put_batch(built.mesh, {"row": rows, "label": labels})
    state = built.initial_state()
    leaves = jax.tree.leaves(state.params)
    since = time.perf_counter()
    compiled = built.train_step().lower(state, data, inputs).compile()
    facts = {
        "compile": time.perf_counter() - since,
        "parameters": sum(leaf.size for leaf in leaves),
        "kernels": sum(leaf.size for leaf in leaves if leaf.ndim > 1),
        "flops": (compiled.cost_analysis() or {}).get("flops"),
        "model_flops": model_flops(built, size),
    }

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, data, inputs)
        return metrics

    def memory() -> int | None:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    return Ready(step, jax.block_until_ready, facts, memory)


def loss(question: dict[str, Any]) -> float:
    """The loss before the first step with the weights of a Keras model, without dropout.

    Args:
        question: ``inputs`` and ``weights`` are files; ``layers`` are kinds of layers, and how many
            of the weights each has.
    """
    with np.load(question["inputs"]) as file:
        images, labels = file["normalised"], file["labels"]
    with np.load(question["weights"]) as file:
        arrays = iter([file[f"arr_{i}"] for i in range(len(file.files))])
    layers = [(kind, [next(arrays) for _ in range(count)]) for kind, count in question["layers"]]
    name, size = question["model"], images.shape[1]
    built = experiment.build(config_of(name, len(images), question["dtype"], size))
    variables = from_layers(name, layers, question["classes"], image_size=size)

    def no_dropout(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        return args[0] if isinstance(context.module, nn.Dropout) else call(*args, **kwargs)

    @jax.jit
    def loss_of(variables: Any) -> jax.Array:
        with nn.intercept_methods(no_dropout):
            (logits, _), _ = built.model.apply(
                variables, images, train=True, mutable=["batch_stats"]
            )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return float(loss_of(variables))


if __name__ == "__main__":
    devices.split_cpu(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    serve_steps({"device": run_dir.device(), **run_dir.versions()}, prepare, loss)
