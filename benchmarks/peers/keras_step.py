"""Training steps of the published models in Keras, on whichever backend this process has.

    KERAS_BACKEND=tensorflow python benchmarks/peers/keras_step.py

is a peer for ``benchmarks/train_step.py``, which asks it on its standard input. A step is forward,
backward, Adam and the batch's loss and accuracy in one compiled function, as Keras' guides write a
training loop of one's own: no part of ``fit`` comes on top. The images are in place and normalised.
On a CPU, TensorFlow runs its own kernels, which are faster there than what XLA makes of the same
function; on a GPU XLA compiles it, as ``fit`` has it.
"""

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(Path(__file__).parents[2]))

import keras
import numpy as np

from benchmarks.peers import keras_models
from benchmarks.peers.steps import Ready, serve_steps

#: Datta et al.'s Adam.
RATE, EPSILON = 0.01, 0.1


def tensorflow_step(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> Ready:
    """The step as a graph of TensorFlow."""
    import tensorflow as tf

    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    optimizer = keras.optimizers.Adam(RATE, epsilon=EPSILON)
    optimizer.build(model.trainable_variables)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(jit_compile=on_gpu)
    def step(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = crossentropy(labels, logits)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        correct = tf.argmax(logits, -1, tf.int32) == labels
        return loss, tf.reduce_mean(tf.cast(correct, "float32"))

    def memory() -> int | None:
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] if on_gpu else None

    call = functools.partial(step, tf.constant(images), tf.constant(labels))
    return _ready(call, lambda result: float(result[0]), memory)


def jax_step(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> Ready:
    """The step as a function of all state, which is donated."""
    import jax

    optimizer = keras.optimizers.Adam(RATE, epsilon=EPSILON)
    optimizer.build(model.trainable_variables)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, images: Any, labels: Any) -> Any:
        trainable, others, moments = state

        def loss_of(trainable: Any) -> Any:
            logits, changed = model.stateless_call(trainable, others, images, training=True)
            return crossentropy(labels, logits), (logits, changed)

        (loss, (logits, changed)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        trainable, moments = optimizer.stateless_apply(moments, gradients, trainable)
        accuracy = (logits.argmax(-1) == labels).mean()
        return (trainable, changed, moments), (loss, accuracy)

    # The model keeps its own arrays, which must not be given away.
    variables = model.trainable_variables, model.non_trainable_variables, optimizer.variables
    state: Any = tuple([v.value.copy() for v in each] for each in variables)
    arguments = [jax.device_put(each) for each in (images, labels)]

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, *arguments)
        return metrics

    def memory() -> int | None:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    return _ready(call, lambda metrics: float(metrics[0]), memory)


def _ready(call: Callable[[], Any], loss_of: Callable[[Any], float], memory: Any) -> Ready:
    """Takes the first step, which compiles, and notes its loss."""
    since = time.perf_counter()
    loss = loss_of(call())
    facts = {"loss": loss, "first_step": time.perf_counter() - since}
    return Ready(call, loss_of, facts, memory)


def prepare(question: dict[str, Any]) -> Ready:
    """Builds the model ``model`` without dropout, writes its weights, and takes the first step.

    The file ``inputs`` has ``normalised`` and ``labels``; the weights of its layers, as many of
    each as ``layers`` says, go to the file ``weights``.
    """
    if question["dtype"] == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    with np.load(question["inputs"]) as file:
        images, labels = file["normalised"], file["labels"]
    size, classes = images.shape[1], question["classes"]
    model = keras_models.build(question["model"], classes, size=size, dropout=0.0)
    weights = [
        (type(layer).__name__, [np.asarray(v) for v in layer.weights if "seed" not in v.path])
        for layer in model.layers
    ]
    np.savez(question["weights"], *(each for _, arrays in weights for each in arrays))
    make = {"tensorflow": tensorflow_step, "jax": jax_step}[keras.backend.backend()]
    ready = make(model, images, labels)
    shapes = [v.shape for v in model.trainable_variables]
    facts = {
        "parameters": sum(int(np.prod(shape)) for shape in shapes),
        "kernels": sum(int(np.prod(shape)) for shape in shapes if len(shape) > 1),
        "layers": [[kind, len(arrays)] for kind, arrays in weights],
    }
    return ready._replace(facts={**ready.facts, **facts})


if __name__ == "__main__":
    backend = keras.backend.backend()
    module = __import__(backend)
    serve_steps({"keras": keras.__version__, backend: module.__version__}, prepare)
