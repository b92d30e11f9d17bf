"""Our training steps and forward passes of the published models."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from benchmarks import ours
from benchmarks.peers import steps
from benchmarks.peers.steps import Ready
from jaxattn import run_dir, runtime, train
from jaxattn.convert.keras import from_layers
from jaxattn.runtime import devices


def setup() -> None:
    """Sets the process up as training does, but without cached programs: compiling is timed."""
    runtime.setup(1)
    jax.config.update("jax_enable_compilation_cache", False)


def prepare(
    model: str, dtype: str, images: np.ndarray, labels: np.ndarray, training: bool, **_: Any
) -> Ready:
    """Compiles the step of a model on a batch of images, bytes, or its prediction."""
    config = ours.published(model, len(images), dtype, images.shape[1])
    if not training:
        return _prediction(config, images)
    run = train.setup(config)
    rows = np.arange(len(images), dtype=np.int32)
    step = ours.Step(
        run,
        devices.put_replicated(run.mesh, {"image": images}),
        devices.put_batch(run.mesh, {"row": rows, "label": labels}),
    )
    leaves = jax.tree.leaves(step.state.params)
    facts = {
        "device": run_dir.device(),
        **run_dir.versions(),
        "compile": step.compile_seconds,
        "parameters": sum(leaf.size for leaf in leaves),
        "kernels": sum(leaf.size for leaf in leaves if leaf.ndim > 1),
        "model_flops": 3 * _forward_flops(run, images.shape),
    }
    return Ready(step, facts=facts, peak=steps.jax_peak)


def _prediction(config: ConfigDict, images: np.ndarray) -> Ready:
    """Probabilities and maps of images, bytes."""
    run = ours.untrained(config)
    batch = {"image": jax.device_put(images)}
    leaves = jax.tree.leaves(run.variables["params"])
    facts = {"kernels": sum(leaf.size for leaf in leaves if leaf.ndim > 1)}
    return Ready(lambda: run._step(run.variables, {}, batch), facts=facts)


def _forward_flops(run: Any, shape: tuple[int, ...]) -> float:
    """XLA's count of the floating-point operations of the forward pass, before optimisation."""
    forward = jax.jit(lambda variables, x: run.model.apply(variables, x, train=False))
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return (forward.lower(run.like.variables, images).cost_analysis() or {}).get("flops", 0.0)


def loss(
    model: str,
    dtype: str,
    classes: int,
    normalised: np.ndarray,
    labels: np.ndarray,
    layers: Any,
    **_: Any,
) -> float:
    """The loss with the weights of a Keras model's layers, in training mode, without dropout."""
    size = normalised.shape[1]
    module = train.setup(ours.published(model, len(labels), dtype, size)).model
    variables = from_layers(model, layers, classes, image_size=size)

    def no_dropout(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        return args[0] if isinstance(context.module, nn.Dropout) else call(*args, **kwargs)

    @jax.jit
    def loss_of(variables: Any, images: jax.Array) -> jax.Array:
        with nn.intercept_methods(no_dropout):
            (logits, _), _ = module.apply(variables, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return float(loss_of(variables, normalised))
