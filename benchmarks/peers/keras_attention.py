"""Soft-Attention in Keras, on whichever backend this process has: values, gradients, seconds.

    KERAS_BACKEND=tensorflow python benchmarks/peers/keras_attention.py

is a peer for ``benchmarks/attention_kernel.py``, which asks it on its standard input.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import keras
import numpy as np
from keras import layers

from benchmarks.peers.elsewhere import serve
from benchmarks.peers.keras_models import SoftAttention

Tensor = Any


class PaperSoftAttention(layers.Layer):
    """Equation 1 of Datta et al. with Keras' 2-D convolution: γ · x · Σ_k softmax(W_k * x)."""

    def __init__(self, heads: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.heads = heads

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Makes ``kernel (3, 3, C, heads)`` and the scalar ``gamma``."""
        self.kernel = self.add_weight(shape=(3, 3, shape[-1], self.heads), name="kernel")
        self.gamma = self.add_weight(shape=(), name="gamma")

    def call(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns attended features, and the maps (B, heads, H, W)."""
        _, height, width, _ = x.shape
        logits = keras.ops.conv(x, self.kernel, 1, "same", data_format="channels_last")
        flat = keras.ops.reshape(logits, (-1, height * width, self.heads))
        maps = keras.ops.reshape(keras.ops.softmax(flat, axis=1), (-1, height, width, self.heads))
        attended = self.gamma * x * keras.ops.sum(maps, axis=-1, keepdims=True)
        return attended, keras.ops.transpose(maps, (0, 3, 1, 2))


def layer(semantics: str, shape: Sequence[int], heads: int, dtype: str) -> layers.Layer:
    """A built layer of ``released`` or ``paper`` semantics; in bfloat16 its weights are float32."""
    kind = {"released": SoftAttention, "paper": PaperSoftAttention}[semantics]
    built = kind(heads, dtype="mixed_bfloat16" if dtype == "bfloat16" else dtype)
    built.build(tuple(shape))
    return built


def tensorflow_calls(question: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """The layer's passes as TensorFlow graphs, of the inputs in the file that the question names.

    Returns:
        ``forward``, which returns attended features, and ``both``, which also returns the gradients
        of the features and of the two parameters.
    """
    import tensorflow as tf

    with np.load(question["inputs"]) as file:
        x, kernel, other, cotangent = (file[name] for name in ("x", "kernel", "other", "cotangent"))
    built = layer(question["semantics"], x.shape, kernel.shape[-1], question["dtype"])
    built.set_weights([kernel, other])
    x, cotangent = (tf.cast(each, question["dtype"]) for each in (x, cotangent))
    weights = [weight.value for weight in built.weights]

    @tf.function
    def forward(x: Tensor) -> Tensor:
        return built(x)[0]

    @tf.function
    def both(x: Tensor, cotangent: Tensor) -> list[Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            attended = built(x)[0]
        return [attended, *tape.gradient(attended, [x, *weights], output_gradients=cotangent)]

    return {"forward": lambda: forward(x), "both": lambda: both(x, cotangent)}


def main() -> None:
    """Answers questions: ``inputs`` prepares passes and computes them, ``time`` measures one."""
    import tensorflow as tf

    calls: dict[str, Callable[[], Any]] = {}

    def answers(question: dict[str, Any]) -> Any:
        if "inputs" in question:
            calls.update(tensorflow_calls(question))
            found = [np.asarray(tf.cast(each, "float32")) for each in calls["both"]()]
            np.savez(question["outputs"], *found)
            return None
        since = time.perf_counter()
        for _ in range(question["calls"]):
            calls[question["time"]]()
        tf.test.experimental.sync_devices()
        return (time.perf_counter() - since) / question["calls"]

    devices = [device.device_type for device in tf.config.list_logical_devices()]
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    serve({"devices": devices, "versions": versions}, answers)


if __name__ == "__main__":
    main()
