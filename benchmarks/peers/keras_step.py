"""Training steps and forward passes of the published models in Keras, on this process' backend.

A step is forward, backward, Adam, and the batch's loss and accuracy in one compiled function, as
Keras' guides write a custom training loop, without the overhead of ``fit``. The images are
normalised and in place. On a CPU, TensorFlow runs its own kernels, which are faster than XLA's for
the same function; on a GPU XLA compiles it, as ``fit`` does.
"""

import functools
from typing import Any

import keras
import numpy as np

from benchmarks.peers import steps
from benchmarks.peers.steps import EPSILON, RATE, Ready
from references import keras_models


def prepare(
    model: str,
    dtype: str,
    classes: int,
    normalised: np.ndarray,
    labels: np.ndarray,
    training: bool,
    **_: Any,
) -> Ready:
    """Builds a model without dropout and takes the first step.

    In training, the fact ``layers`` holds the kind and the initial weights of each layer.
    """
    keras.config.set_dtype_policy("mixed_bfloat16" if dtype == "bfloat16" else "float32")
    built = keras_models.build(model, classes, size=normalised.shape[1], dropout=0.0)
    backend = keras.backend.backend()
    shapes = [v.shape for v in built.trainable_variables]
    facts: dict[str, Any] = {
        "keras": keras.__version__,
        backend: __import__(backend).__version__,
        "parameters": sum(int(np.prod(shape)) for shape in shapes),
        "kernels": sum(int(np.prod(shape)) for shape in shapes if len(shape) > 1),
    }
    if training:
        facts["layers"] = [
            (type(each).__name__, [np.array(v.value) for v in each.weights if "seed" not in v.path])
            for each in built.layers
        ]
        make = {"tensorflow": _tensorflow_step, "jax": _jax_step}[backend]
        ready = make(built, normalised, labels)
        facts["loss"] = ready.wait(ready.step())  # compiles
    else:
        forward = {"tensorflow": _tensorflow_forward, "jax": _jax_forward}[backend]
        ready = forward(built, normalised)
        ready.wait(ready.step())
    return ready._replace(facts=facts)


def _tensorflow_forward(model: keras.Model, images: np.ndarray) -> Ready:
    import tensorflow as tf

    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    function = tf.function(lambda x: model(x, training=False), jit_compile=on_gpu)
    return Ready(functools.partial(function, tf.constant(images)), lambda logits: logits.numpy())


def _jax_forward(model: keras.Model, images: np.ndarray) -> Ready:
    import jax

    # As constants, XLA would fold them while it compiles.
    both = (model.trainable_variables, model.non_trainable_variables)
    weights = [[each.value for each in variables] for variables in both]
    call = jax.jit(lambda weights, x: model.stateless_call(*weights, x, training=False)[0])
    return Ready(functools.partial(call, weights, jax.device_put(images)))


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
    return Ready(call, _loss, peak=memory)


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

    return Ready(call, _loss, peak=steps.jax_peak)


def _loss(metrics: Any) -> float:
    return float(metrics[0])
