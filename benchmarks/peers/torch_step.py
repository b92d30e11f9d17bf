"""Training steps and forward passes of the published models in PyTorch.

In channels_last, bfloat16 by autocast; on a GPU, the model is compiled.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # its usual name

from benchmarks.peers.steps import EPSILON, RATE, Ready
from references import torch_models


def prepare(
    model: str,
    dtype: str,
    classes: int,
    normalised: np.ndarray,
    labels: np.ndarray,
    training: bool,
    **_: Any,
) -> Ready:
    """Builds a model without dropout and takes the first step."""
    import timm

    built, images = network(model, classes, normalised)
    if training:
        targets = torch.from_numpy(labels).long()
        ready = make_step(built, images, targets, dtype, RATE, EPSILON)
    else:
        ready = _forward(built.eval(), images)
    packages = (torch, torch_models.torchvision, timm)
    versions = {package.__name__: package.__version__ for package in packages}
    return ready._replace(facts={**versions, **counts(built)})


def network(model: str, classes: int, normalised: np.ndarray) -> tuple[nn.Module, Tensor]:
    """A model and the images for it, in channels_last."""
    images = torch.from_numpy(normalised).permute(0, 3, 1, 2)
    built = torch_models.build(model, classes, images.shape[2])
    for module in built.modules():
        if isinstance(module, nn.Conv2d):  # not the attention, whose kernel has five axes
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return built, images.contiguous(memory_format=torch.channels_last)


def counts(model: nn.Module) -> dict[str, int]:
    """The number of ``parameters``, and of those in ``kernels``."""
    sizes = [(each.numel(), each.ndim) for each in model.parameters()]
    return {
        "parameters": sum(size for size, _ in sizes),
        "kernels": sum(size for size, axes in sizes if axes > 1),
    }


def _forward(model: nn.Module, images: Tensor) -> Ready:
    run: Any = model
    if torch.cuda.is_available():
        run, images = torch.compile(model.cuda()), images.cuda()

    def step() -> Tensor:
        with torch.inference_mode():
            return run(images)

    step()
    return Ready(step, lambda logits: logits.tolist())


def make_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    dtype: str,
    rate: float,
    epsilon: float = 1e-8,
) -> Ready:
    """Makes a step with Adam on one batch ready: on the GPU if there is one, else on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, images, labels = model.to(device), images.to(device), labels.to(device)
    optimizer = torch.optim.Adam(model.parameters(), rate, eps=epsilon, fused=True)
    run: Any = torch.compile(model) if device == "cuda" else model

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

    step().tolist()
    return Ready(step, lambda result: result.tolist(), peak=memory)
