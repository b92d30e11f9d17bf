"""Training steps of the published models in Keras, on the backend of this process.

A step is forward, backward, Adam, and the batch's loss and accuracy in one compiled function, as
Keras' guides write a custom training loop, without the overhead of ``fit``. The images are
normalised and in place. On a CPU, TensorFlow runs its own kernels, which are faster than XLA's for
the same function; on a GPU XLA compiles it, as ``fit`` does.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from benchmarks.peers import steps
from benchmarks.peers.steps import EPSILON, RATE, Ready
from references import keras_models


def about() -> dict[str, str]:
    """Versions of Keras and its backend."""
    backend = keras.backend.backend()
    return {"keras": keras.__version__, backend: __import__(backend).__version__}


def prepare(
    model: str, dtype: str, classes: int, normalised: np.ndarray, labels: np.ndarray, **_: Any
) -> Ready:
    """Builds a model without dropout and takes the first step.

    The fact ``layers`` holds the kind and the initial weights of each layer.
    """
    keras.config.set_dtype_policy("mixed_bfloat16" if dtype == "bfloat16" else "float32")
    built = keras_models.build(model, classes, size=normalised.shape[1], dropout=0.0)
    layers = [
        (type(layer).__name__, [np.array(v.value) for v in layer.weights if "seed" not in v.path])
        for layer in built.layers
    ]
    make = {"tensorflow": _tensorflow_step, "jax": _jax_step}[keras.backend.backend()]
    ready = make(built, normalised, labels)
    since = time.perf_counter()
    loss = ready.wait(ready.step())  # compiles
    shapes = [v.shape for v in built.trainable_variables]
    facts = {
        "loss": loss,
        "first_step": time.perf_counter() - since,
        "parameters": sum(int(np.prod(shape)) for shape in shapes),
        "kernels": sum(int(np.prod(shape)) for shape in shapes if len(shape) > 1),
        "layers": layers,
    }
    return ready._replace(facts=facts)


def _tensorflow_step(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> Ready:
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
    return Ready(call, _loss, {}, memory)


def _jax_step(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> Ready:
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

    # The step donates its state, and the model keeps its own arrays.
    variables = model.trainable_variables, model.non_trainable_variables, optimizer.variables
    state: Any = tuple([v.value.copy() for v in each] for each in variables)
    arguments = [jax.device_put(each) for each in (images, labels)]

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, *arguments)
        return metrics

    def memory() -> int | None:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    return Ready(call, _loss, {}, memory)


def _loss(metrics: Any) -> float:
    return float(metrics[0])


FUNCTIONS: dict[str, Callable[..., Any]] = steps.functions(prepare)
