"""Forward passes of the published models in ONNX Runtime, exported by PyTorch."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks.peers import torch_step
from benchmarks.peers.steps import Ready


def prepare(model: str, classes: int, normalised: np.ndarray, **_: Any) -> Ready:
    """Exports a model and computes once."""
    built, images = torch_step.network(model, classes, normalised)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(built.eval(), (images,), path, dynamo=False, input_names=["images"])
        session = onnxruntime.InferenceSession(
            path, providers=onnxruntime.get_available_providers()
        )
    given = {"images": np.ascontiguousarray(images.numpy())}
    session.run(None, given)
    return Ready(lambda: session.run(None, given), lambda logits: None, torch_step.counts(built))
