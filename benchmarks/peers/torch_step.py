"""Training steps of the published models in PyTorch: torchvision's and timm's, or by hand.

    python benchmarks/peers/torch_step.py

is a peer for ``benchmarks/train_step.py``, which asks it on its standard input. Networks end where
the published ones do, and the attention block is the same, its odd convolution as the small
two-dimensional one that it equals. Three things differ, none of which makes work for PyTorch: there
are no biases before a batch norm where the library has none, batch norms of Inception-ResNet-v2
have a scale, and where TensorFlow pads only after an image, it is padded on both sides. ResNet-50
has its strides in the 1×1 convolutions, as Keras has them. Layout is channels_last; bfloat16 is by
autocast; on a GPU, or if asked to, the model is compiled.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # as everybody calls it

from benchmarks.peers import torch_vision
from benchmarks.peers.steps import Ready, serve_steps

torchvision = torch_vision.load()

import timm  # noqa: E402 it imports torchvision

#: Datta et al.'s Adam.
RATE, EPSILON = 0.01, 0.1


class SoftAttention(nn.Module):
    """The released Soft-Attention of features (B, C, H, W); see ``keras_models.SoftAttention``."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(channels, 3, 3, 1, heads) * 0.01)
        self.bias = nn.Parameter(torch.zeros(heads))

    def forward(self, x: Tensor) -> Tensor:
        """Returns attended features."""
        channels, height = x.shape[1:3]
        first = (channels - 1) // 2 - (height - 1)
        rows = self.kernel[first : first + 2 * height - 1, :, :, 0].permute(3, 2, 0, 1)
        logits = F.relu(F.conv2d(x[:, :3], rows, self.bias, padding=(height - 1, 1)))
        maps = F.softmax(logits.flatten(2), -1).unflatten(2, x.shape[2:])
        return x * maps.sum(1, keepdim=True)


class Attend(nn.Module):
    """Features and attended features, pooled, side by side; ReLU."""

    def __init__(self, channels: int, heads: int = 16, pool: nn.Module | None = None):
        super().__init__()
        self.attention = SoftAttention(channels, heads)
        self.pool = pool or nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns twice the channels."""
        return F.relu(torch.cat([self.pool(x), self.pool(self.attention(x))], 1))


class Shortcut(nn.Module):
    """A branch, added to the input or to a convolution of it; ReLU."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None):
        super().__init__()
        self.branch, self.shortcut = branch, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum's ReLU."""
        return F.relu(self.branch(x) + self.shortcut(x))


class Dense29(nn.Module):
    """The last block of torchvision's DenseNet-201, up to the bottleneck of its layer 29."""

    def __init__(self, block: nn.Module):
        super().__init__()
        layers: list[Any] = list(block.children())
        last = layers[28]
        self.layers = nn.ModuleList(layers[:28])
        self.bottleneck = nn.Sequential(last.norm1, last.relu1, last.conv1, last.norm2, last.relu2)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the bottleneck's 128 channels."""
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return self.bottleneck(torch.cat(features, 1))


def conv(
    before: int, features: int, size: int = 3, stride: int = 1, padding: int = -1
) -> nn.Module:
    """Convolution with bias, ReLU, and only then batch norm."""
    padding = size // 2 if padding < 0 else padding
    return nn.Sequential(
        nn.Conv2d(before, features, size, stride, padding), nn.ReLU(), nn.BatchNorm2d(features)
    )


def irv2(attention: bool) -> nn.Module:
    """The network of timm up to the batch norm inside its ninth block8."""
    network: Any = timm.create_model("inception_resnet_v2", num_classes=1)
    names = ("conv2d_1a", "conv2d_2a", "conv2d_2b", "maxpool_3a", "conv2d_3b", "conv2d_4a")
    stem = [getattr(network, name) for name in (*names, "maxpool_5a", "mixed_5b")]
    stages = [network.repeat, network.mixed_6a, network.repeat_1, network.mixed_7a]
    last = network.repeat_2[8].branch0
    norm = nn.BatchNorm2d(192, eps=last.bn.eps)  # timm's has the ReLU in it
    end = [Attend(192) if attention else nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*stem, *stages, *list(network.repeat_2)[:8], last.conv, norm, *end)


def densenet201(attention: bool) -> nn.Module:
    """The network of torchvision up to the bottleneck of layer 29 of its last block."""
    *features, block, _ = torchvision.models.densenet201().features.children()
    end = [Attend(128)] if attention else []
    return nn.Sequential(*features, Dense29(block), *end, nn.Flatten())


def resnet50(attention: bool) -> nn.Module:
    """The network of torchvision without its classifier."""
    network: Any = torchvision.models.resnet50()
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    end = [Attend(2048)] if attention else []
    features = list(network.children())[:-2]
    return nn.Sequential(*features, *end, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def resnet34(attention: bool) -> nn.Module:
    """Datta et al.'s network by hand."""
    parts, channels = [conv(3, 64, stride=2), nn.MaxPool2d(3, 2, 1)], 64
    for stage, (features, units) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 2):
        for _ in range(units):
            branch = nn.Sequential(conv(channels, features), conv(features, features))
            parts.append(Shortcut(branch, None if stage == 2 else conv(channels, features)))
            channels = features
        if stage == 3 and attention:
            parts.append(Attend(channels))
            channels *= 2
        elif stage in (2, 4):
            parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def vgg16(attention: bool) -> nn.Module:
    """Datta et al.'s network by hand."""
    blocks = ((64, (3, 1)), (128, (3, 1)), (256, (3, 3, 1)), (512, (3, 3, 1)), (512, (3, 3, 1)))
    parts: list[nn.Module] = []
    channels = 3
    for block, (features, kernels) in enumerate(blocks, 1):
        for size in kernels:
            parts.append(conv(channels, features, size))
            channels = features
        if block == 4 and attention:
            parts.append(Attend(channels))
            channels *= 2
        else:
            parts.append(nn.MaxPool2d(4 if block == 5 else 2, ceil_mode=True))
    return nn.Sequential(*parts, *_fully_connected())


def koefler_cnn(attention: bool) -> nn.Module:
    """Köfler's network by hand, of images of 100 × 100."""
    pool = nn.MaxPool2d(3, 1)
    fifth = Attend(512, 12, pool) if attention else pool
    return nn.Sequential(
        conv(3, 64, 7, 2, 0),
        nn.MaxPool2d(3, 2),
        conv(64, 128, stride=2),
        pool,
        conv(128, 256),
        pool,
        conv(256, 512),
        conv(512, 512),
        fifth,
        conv(1024 if attention else 512, 512),
        pool,
        *_fully_connected(),
    )


def _fully_connected() -> list[nn.Module]:
    """Two dense layers on all positions: 4 × 4 in both networks that have them."""
    return [nn.Flatten(), nn.Linear(8192, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]


#: By the names that ours have without ``_sa``.
NETWORKS: dict[str, Callable[[bool], nn.Module]] = {
    make.__name__: make for make in (irv2, densenet201, resnet50, resnet34, vgg16, koefler_cnn)
}


def prepare(question: dict[str, Any]) -> Ready:
    """Builds the model ``model`` without dropout and takes the first step.

    The file ``inputs`` has ``normalised`` and ``labels``.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = question["dtype"] == "bfloat16"
    with np.load(question["inputs"]) as file:
        images = torch.from_numpy(file["normalised"]).permute(0, 3, 1, 2)
        labels = torch.from_numpy(file["labels"]).long().to(device)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    name = question["model"]
    features = NETWORKS[name.removesuffix("_sa")](name.endswith("_sa"))
    with torch.no_grad():
        width = features.eval()(torch.zeros(1, *images.shape[1:])).shape[1]
    model = nn.Sequential(features, nn.Linear(width, question["classes"])).to(device)
    for module in model.train().modules():
        if isinstance(module, nn.Conv2d):  # The attention's kernel has five axes.
            module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), RATE, eps=EPSILON, fused=True)
    run = torch.compile(model) if device == "cuda" or question["compile"] else model

    def step() -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            logits = run(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach(), (logits.argmax(-1) == labels).float().mean()

    def memory() -> int | None:
        return torch.cuda.max_memory_allocated() if device == "cuda" else None

    since = time.perf_counter()
    step()[0].item()
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "kernels": sum(p.numel() for p in model.parameters() if p.ndim > 1),
        "first_step": time.perf_counter() - since,
        "compiled": run is not model,
    }
    return Ready(step, lambda result: result[0].item(), facts, memory)


if __name__ == "__main__":
    packages = (torch, torchvision, timm)
    serve_steps({package.__name__: package.__version__ for package in packages}, prepare)
