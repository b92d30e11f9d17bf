"""Training steps of the published models in PyTorch: channels_last, bfloat16 by autocast.

On a GPU, or if asked to, the model is compiled.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # its usual name

from benchmarks.peers import steps
from benchmarks.peers.steps import EPSILON, RATE, Ready
from references import torch_models


def about() -> dict[str, str]:
    """Versions of PyTorch and the packages of its networks."""
    import timm

    packages = (torch, torch_models.torchvision, timm)
    return {package.__name__: package.__version__ for package in packages}


def prepare(
    model: str,
    dtype: str,
    classes: int,
    compile: bool,
    normalised: np.ndarray,
    labels: np.ndarray,
    **_: Any,
) -> Ready:
    """Builds a model without dropout and takes the first step."""
    images = torch.from_numpy(normalised).permute(0, 3, 1, 2)
    targets = torch.from_numpy(labels).long()
    built = torch_models.build(model, classes, images.shape[2])
    for module in built.modules():
        if isinstance(module, nn.Conv2d):  # not the attention, whose kernel has five axes
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = images.contiguous(memory_format=torch.channels_last)
    return make_step(built, images, targets, dtype, RATE, EPSILON, compile)


def make_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    dtype: str,
    rate: float,
    epsilon: float = 1e-8,
    compile: bool = False,
) -> Ready:
    """Makes a step with Adam on one batch ready: on the GPU if there is one, else on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, images, labels = model.to(device), images.to(device), labels.to(device)
    optimizer = torch.optim.Adam(model.parameters(), rate, eps=epsilon, fused=True)
    compiled = device == "cuda" or compile
    run: Any = torch.compile(model) if compiled else model

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = run(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return torch.stack([loss.detach(), accuracy])

    def memory() -> int | None:
        return torch.cuda.max_memory_allocated() if device == "cuda" else None

    since = time.perf_counter()
    step().tolist()
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "kernels": sum(p.numel() for p in model.parameters() if p.ndim > 1),
        "first_step": time.perf_counter() - since,
        "compiled": compiled,
    }
    return Ready(step, lambda result: result.tolist(), facts, memory)


FUNCTIONS: dict[str, Callable[..., Any]] = steps.functions(prepare)
