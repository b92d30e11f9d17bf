"""Soft-Attention in Keras, on the backend of this process."""

from typing import Any, NamedTuple

import keras
import numpy as np

from benchmarks.peers.steps import Ready
from references import keras_models

Tensor = Any


class Passes(NamedTuple):
    """Both passes.

    Attributes:
        ready: By name, ``forward`` and ``both``.
        facts: ``results``, attended features and the gradients of features and kernel, float32.
    """

    ready: dict[str, Ready]
    facts: dict[str, list[np.ndarray]]

    def time(self, calls: int, what: str) -> float:
        """Mean seconds of a pass."""
        return self.ready[what].time(calls)


def prepare(variant: str, dtype: str, inputs: dict[str, np.ndarray], **_: Any) -> Passes:
    """Makes the passes ready, and computes them.

    Args:
        variant: ``released`` or ``paper``.
        dtype: Type of the features.
        inputs: ``x``, ``kernel``, ``other`` (bias or gamma) and ``cotangent``.
    """
    x, kernel, other, cotangent = (inputs[name] for name in ("x", "kernel", "other", "cotangent"))
    layer = keras_models.attention_layer(variant, x.shape, kernel.shape[-1], dtype)
    layer.set_weights([kernel, other])
    make = {"tensorflow": _tensorflow, "jax": _jax}[keras.backend.backend()]
    x, cotangent = (keras.ops.cast(each, dtype) for each in (x, cotangent))
    ready = {what: make(layer, x, cotangent, what) for what in ("forward", "both")}
    found = keras.tree.flatten(ready["both"].step())[:3]
    results = [np.asarray(keras.ops.cast(each, "float32")) for each in found]
    return Passes(ready, {"results": results})


def _tensorflow(layer: Any, x: Tensor, cotangent: Tensor, what: str) -> Ready:
    import tensorflow as tf

    weights = [weight.value for weight in layer.weights]

    @tf.function
    def run(x: Tensor, cotangent: Tensor) -> list[Tensor]:
        if what == "forward":
            return [layer(x)[0]]
        with tf.GradientTape() as tape:
            tape.watch(x)
            attended = layer(x)[0]
        return [attended, *tape.gradient(attended, [x, *weights], output_gradients=cotangent)]

    return Ready(lambda: run(x, cotangent), lambda _: tf.test.experimental.sync_devices())


def _jax(layer: Any, x: Tensor, cotangent: Tensor, what: str) -> Ready:
    import jax

    params = [weight.value for weight in layer.weights]

    def attend(x: Tensor, params: list[Tensor]) -> Tensor:
        return layer.stateless_call(params, [], x)[0][0]

    @jax.jit
    def run(x: Tensor, params: list[Tensor], cotangent: Tensor) -> Any:
        if what == "forward":
            return attend(x, params)
        attended, pullback = jax.vjp(attend, x, params)
        attended, cotangent = jax.lax.optimization_barrier((attended, cotangent))
        return attended, *pullback(cotangent)

    return Ready(lambda: run(x, params, cotangent))
