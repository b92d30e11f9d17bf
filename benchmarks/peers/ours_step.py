"""Our training steps of the published models, in a process of their own like those of the peers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks import ours
from benchmarks.peers import steps
from benchmarks.peers.steps import Ready
from jaxattn import run_dir, runtime
from jaxattn.convert.keras import from_layers
from jaxattn.runtime import devices


def setup() -> None:
    """Sets the process up as training does, but without cached programs: compiling is timed."""
    runtime.setup(1)
    jax.config.update("jax_enable_compilation_cache", False)


def about() -> dict[str, str]:
    """The device and versions."""
    return {"device": run_dir.device(), **run_dir.versions()}


def prepare(model: str, dtype: str, images: np.ndarray, labels: np.ndarray, **_: Any) -> Ready:
    """Compiles the step of a model on a batch of images, bytes."""
    run = ours.setup(ours.published(model, len(images), dtype, images.shape[1]))
    rows = np.arange(len(images), dtype=np.int32)
    step = ours.Step(
        run,
        devices.put_replicated(run.mesh, {"image": images}),
        devices.put_batch(run.mesh, {"row": rows, "label": labels}),
    )
    leaves = jax.tree.leaves(step.state.params)
    facts = {
        "compile": step.compile_seconds,
        "parameters": sum(leaf.size for leaf in leaves),
        "kernels": sum(leaf.size for leaf in leaves if leaf.ndim > 1),
        "model_flops": 3 * _forward_flops(run, images.shape),
    }

    def memory() -> int | None:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    return Ready(step, jax.block_until_ready, facts, memory)


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
    module = ours.setup(ours.published(model, len(labels), dtype, size)).model
    variables = from_layers(model, layers, classes, image_size=size)

    def no_dropout(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        return args[0] if isinstance(context.module, nn.Dropout) else call(*args, **kwargs)

    @jax.jit
    def loss_of(variables: Any, images: jax.Array) -> jax.Array:
        with nn.intercept_methods(no_dropout):
            (logits, _), _ = module.apply(variables, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return float(loss_of(variables, normalised))


FUNCTIONS: dict[str, Callable[..., Any]] = {**steps.functions(prepare), "loss": loss}
