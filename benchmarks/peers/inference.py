"""Forward passes of the published models, from images in place to logits, ready to be timed.

Ours starts from bytes, normalises them and returns probabilities and maps; the peers start from
normalised images. PyTorch runs in channels_last and inference mode, Keras in a compiled function,
ONNX Runtime a network that PyTorch exported.
"""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import steps
from benchmarks.peers.steps import Ready


def about() -> dict[str, str]:
    """Nothing: which library is used depends on the question."""
    return {}


def _ours(model: str, classes: int, images: np.ndarray, **_: Any) -> Ready:
    import jax

    from benchmarks import ours

    run = ours.untrained(ours.published(model, len(images), "float32", images.shape[1]), classes)
    batch = {"image": jax.device_put(images)}
    leaves = jax.tree.leaves(run.variables["params"])
    facts = {"kernels": sum(leaf.size for leaf in leaves if leaf.ndim > 1)}
    step = run._step
    return Ready(lambda: step(run.variables, {}, batch), jax.block_until_ready, facts, _no_memory)


def _torch_model(model: str, classes: int, normalised: np.ndarray) -> tuple[Any, Any]:
    import torch
    from torch import nn

    from references import torch_models

    images = torch.from_numpy(normalised).permute(0, 3, 1, 2)
    built = torch_models.build(model, classes, images.shape[2]).eval()
    for module in built.modules():
        if isinstance(module, nn.Conv2d):  # not the attention, whose kernel has five axes
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return built, images.contiguous(memory_format=torch.channels_last)


def _torch(model: str, classes: int, normalised: np.ndarray, **_: Any) -> Ready:
    import torch

    built, images = _torch_model(model, classes, normalised)
    if torch.cuda.is_available():
        built, images = torch.compile(built.cuda()), images.cuda()

    def step() -> Any:
        with torch.inference_mode():
            return built(images)

    facts = {"kernels": sum(p.numel() for p in built.parameters() if p.ndim > 1)}
    return Ready(step, lambda logits: logits.tolist(), facts, _no_memory)


def _onnx(model: str, classes: int, normalised: np.ndarray, **_: Any) -> Ready:
    import onnxruntime
    import torch

    built, images = _torch_model(model, classes, normalised)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(built, (images,), path, dynamo=False, input_names=["images"])
        session = onnxruntime.InferenceSession(
            path, providers=onnxruntime.get_available_providers()
        )
    given = {"images": np.ascontiguousarray(images.numpy())}
    facts = {"kernels": sum(p.numel() for p in built.parameters() if p.ndim > 1)}
    return Ready(lambda: session.run(None, given), lambda logits: None, facts, _no_memory)


def _keras(model: str, classes: int, normalised: np.ndarray, **_: Any) -> Ready:
    import keras

    from references import keras_models

    built = keras_models.build(model, classes, size=normalised.shape[1], dropout=0.0)
    shapes = [weight.shape for weight in built.trainable_weights if len(weight.shape) > 1]
    facts = {"kernels": sum(math.prod(shape) for shape in shapes)}
    if keras.backend.backend() == "jax":
        import jax

        # As constants, XLA would fold them while it compiles.
        both = (built.trainable_variables, built.non_trainable_variables)
        weights = [[each.value for each in variables] for variables in both]
        call = jax.jit(lambda weights, x: built.stateless_call(*weights, x, training=False)[0])
        images = jax.device_put(normalised)
        return Ready(lambda: call(weights, images), jax.block_until_ready, facts, _no_memory)
    import tensorflow as tf

    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    function = tf.function(lambda x: built(x, training=False), jit_compile=on_gpu)
    constant = tf.constant(normalised)
    return Ready(lambda: function(constant), lambda logits: logits.numpy(), facts, _no_memory)


def _no_memory() -> None:
    return None


WAYS: dict[str, Callable[..., Ready]] = {
    "ours": _ours,
    "keras_tensorflow": _keras,
    "keras_jax": _keras,
    "torch": _torch,
    "onnx": _onnx,
}


def prepare(way: str, **arguments: Any) -> Ready:
    """Makes a way ready, and computes once."""
    ready = WAYS[way](**arguments)
    ready.wait(ready.step())
    return ready


FUNCTIONS: dict[str, Callable[..., Any]] = steps.functions(prepare)
