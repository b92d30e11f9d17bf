"""The published models in PyTorch: networks of torchvision and timm, or written by hand.

Networks end where the published ones do, with the same attention block; its unusual 3-D convolution
is written as the small 2-D one that it equals. Three things differ from the Keras models, none of
which costs PyTorch time: there is no bias before a batch norm where the library has none, batch
norms of Inception-ResNet-v2 have a scale, and where TensorFlow pads after the image only, both
sides are padded. ResNet-50 has its strides in the 1×1 convolutions, as in Keras.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # its usual name


def _torchvision() -> ModuleType:
    """Imports torchvision; declares its compiled operators if they do not load, as none is used."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        import torchvision
    return torchvision


torchvision = _torchvision()


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
    """Features and attended features, pooled and concatenated; ReLU."""

    def __init__(self, channels: int, heads: int = 16, pool: nn.Module | None = None):
        super().__init__()
        self.attention = SoftAttention(channels, heads)
        self.pool = pool or nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns twice the channels."""
        return F.relu(torch.cat([self.pool(x), self.pool(self.attention(x))], 1))


class Shortcut(nn.Module):
    """A branch added to the input, or to a convolution of it; ReLU."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None):
        super().__init__()
        self.branch, self.shortcut = branch, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum's ReLU."""
        return F.relu(self.branch(x) + self.shortcut(x))


class Dense29(nn.Module):
    """The last block of torchvision's DenseNet-201, up to the bottleneck of layer 29."""

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
    """Convolution with bias, ReLU, then batch norm."""
    padding = size // 2 if padding < 0 else padding
    return nn.Sequential(
        nn.Conv2d(before, features, size, stride, padding), nn.ReLU(), nn.BatchNorm2d(features)
    )


def irv2(attention: bool) -> nn.Module:
    """Network of timm up to the batch norm inside its ninth block8."""
    import timm  # imports torchvision

    network: Any = timm.create_model("inception_resnet_v2", num_classes=1)
    names = ("conv2d_1a", "conv2d_2a", "conv2d_2b", "maxpool_3a", "conv2d_3b", "conv2d_4a")
    stem = [getattr(network, name) for name in (*names, "maxpool_5a", "mixed_5b")]
    stages = [network.repeat, network.mixed_6a, network.repeat_1, network.mixed_7a]
    last = network.repeat_2[8].branch0
    norm = nn.BatchNorm2d(192, eps=last.bn.eps)  # timm's includes the ReLU
    end = [Attend(192) if attention else nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*stem, *stages, *list(network.repeat_2)[:8], last.conv, norm, *end)


def densenet201(attention: bool) -> nn.Module:
    """Network of torchvision up to the bottleneck of layer 29 of its last block."""
    *features, block, _ = torchvision.models.densenet201().features.children()
    end = [Attend(128)] if attention else []
    return nn.Sequential(*features, Dense29(block), *end, nn.Flatten())


def resnet50(attention: bool) -> nn.Module:
    """Network of torchvision without its classifier."""
    network: Any = torchvision.models.resnet50()
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    end = [Attend(2048)] if attention else []
    features = list(network.children())[:-2]
    return nn.Sequential(*features, *end, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def resnet34(attention: bool) -> nn.Module:
    """Datta et al.'s own network."""
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
    """Datta et al.'s own network."""
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
    """Köfler's network, for images of 100 × 100."""
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
    """Two dense layers on the flattened features, 4 × 4 × 512 in both networks that have them."""
    return [nn.Flatten(), nn.Linear(8192, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]


#: By the names of our models without ``_sa``.
NETWORKS: dict[str, Callable[[bool], nn.Module]] = {
    make.__name__: make for make in (irv2, densenet201, resnet50, resnet34, vgg16, koefler_cnn)
}


def build(name: str, classes: int, size: int) -> nn.Module:
    """Makes a published model without dropout, from images (B, 3, size, size) to logits.

    Args:
        name: One of ``NETWORKS``, or that with ``_sa`` for Soft-Attention.
        classes: Number of classes.
        size: Height and width of the images in pixels.
    """
    features = NETWORKS[name.removesuffix("_sa")](name.endswith("_sa"))
    with torch.no_grad():
        width = features.eval()(torch.zeros(1, 3, size, size)).shape[1]
    return nn.Sequential(features, nn.Linear(width, classes)).train()


class PatchDenseNet(nn.Module):
    """Gessert et al.'s initial patch attention on torchvision's DenseNet-121.

    Crops are folded into the batch and weighted by a dense layer of their means.
    """

    def __init__(self, classes: int, crops: int):
        super().__init__()
        self.network: Any = torchvision.models.densenet121(num_classes=classes)
        self.weigh = nn.Linear(crops, crops)

    def forward(self, crops: Tensor) -> Tensor:
        """Returns the logits of images given as crops (B, N, 3, h, w)."""
        weights = torch.sigmoid(self.weigh(crops.mean((2, 3, 4))))
        weighted = (crops * weights[..., None, None, None]).flatten(0, 1)
        features = self.network.features(weighted).mean((2, 3))
        return self.network.classifier(features).unflatten(0, crops.shape[:2]).mean(1)
