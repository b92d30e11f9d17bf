"""Soft-Attention in Keras, on the backend of this process: values, gradients, seconds."""

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from references import keras_models

Tensor = Any

_PASSES: dict[str, Callable[[], Any]] = {}


def about() -> dict[str, str]:
    """Versions of Keras and its backend."""
    backend = keras.backend.backend()
    return {"keras": keras.__version__, backend: __import__(backend).__version__}


def compute(variant: str, dtype: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Makes the passes ``forward`` and ``both`` ready, and computes them.

    Args:
        variant: ``released`` or ``paper``.
        dtype: Type of the features.
        inputs: ``x``, ``kernel``, ``other`` (bias or gamma) and ``cotangent``.

    Returns:
        Attended features, and the gradients of the features and the kernel, float32.
    """
    x, kernel, other, cotangent = (inputs[name] for name in ("x", "kernel", "other", "cotangent"))
    layer = keras_models.attention_layer(variant, x.shape, kernel.shape[-1], dtype)
    layer.set_weights([kernel, other])
    make = {"tensorflow": _tensorflow, "jax": _jax}[keras.backend.backend()]
    x, cotangent = (keras.ops.cast(each, dtype) for each in (x, cotangent))
    _PASSES.update(make(layer, x, cotangent))
    found = keras.tree.flatten(_PASSES["both"]())[:3]
    return [np.asarray(keras.ops.cast(each, "float32")) for each in found]


def _tensorflow(layer: Any, x: Tensor, cotangent: Tensor) -> dict[str, Callable[[], Any]]:
    import tensorflow as tf

    weights = [weight.value for weight in layer.weights]

    @tf.function
    def forward(x: Tensor) -> Tensor:
        return layer(x)[0]

    @tf.function
    def both(x: Tensor, cotangent: Tensor) -> list[Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            attended = layer(x)[0]
        return [attended, *tape.gradient(attended, [x, *weights], output_gradients=cotangent)]

    return {"forward": lambda: forward(x), "both": lambda: both(x, cotangent)}


def _jax(layer: Any, x: Tensor, cotangent: Tensor) -> dict[str, Callable[[], Any]]:
    import jax

    params = [weight.value for weight in layer.weights]

    def forward(x: Tensor, params: list[Tensor]) -> Tensor:
        return layer.stateless_call(params, [], x)[0][0]

    def both(x: Tensor, params: list[Tensor], cotangent: Tensor) -> Any:
        attended, pullback = jax.vjp(forward, x, params)
        attended, cotangent = jax.lax.optimization_barrier((attended, cotangent))
        return attended, *pullback(cotangent)

    forward_jit, both_jit = jax.jit(forward), jax.jit(both)
    return {
        "forward": lambda: forward_jit(x, params),
        "both": lambda: both_jit(x, params, cotangent),
    }


def timed(what: str, calls: int) -> float:
    """Mean seconds of a pass."""
    since = time.perf_counter()
    for _ in range(calls):
        result = _PASSES[what]()
    if keras.backend.backend() == "jax":
        import jax

        jax.block_until_ready(result)
    else:
        import tensorflow as tf

        tf.test.experimental.sync_devices()
    return (time.perf_counter() - since) / calls


FUNCTIONS: dict[str, Callable[..., Any]] = {"compute": compute, "time": timed}
