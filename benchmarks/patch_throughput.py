"""Patches per second in training: crops with attention, plain images, and the same in PyTorch.

``benchmarks/README.md`` says what is measured and how.

    python -m benchmarks.patch_throughput [--backbone=torch_densenet121] [--images=5] [--size=224]
"""

from typing import Any

from ml_collections import ConfigDict

from benchmarks import measure, ours, tables
from benchmarks.peers.steps import Ready
from jaxattn import train
from jaxattn.config import base

CROPS = 9


def config_of(strategy: str, *, backbone: str, dtype: str, images: int, size: int) -> ConfigDict:
    """A run on synthetic images, twice as high as a crop, with the paper's aspect ratio."""
    config = base()
    config.dataset.image_size = (2 * size, 2 * size * 4 // 3)
    config.dataset.num_images = 140
    config.augment.update(rotation=0.0, shift=0.0, zoom=0.0, brightness=32 / 255, saturation=0.5)
    config.normalisation = "unit"
    config.dtype = dtype
    config.loader.name = "in_memory"
    config.model = ConfigDict({"name": "gessert2019", "backbone": backbone})
    config.crops.update(size=size, count=CROPS)
    if strategy == "attention":
        config.model.attention = ("initial",)
        config.crops.strategy = "ordered"
        config.batch_size = images
    else:
        config.dataset.image_size = size
        config.batch_size = images * CROPS
    config.optimizer.update(weight_decay=0.0, warmup=0.0, schedule="constant")
    return config


def _torch(dtype: str, images: int, size: int) -> Ready:
    """The published model's step on random crops."""
    import torch

    from benchmarks.peers import torch_step
    from references import torch_models

    model, crops = torch_models.PatchDenseNet(7, CROPS), torch.rand(images, CROPS, 3, size, size)
    return torch_step.make_step(model, crops, torch.arange(images) % 7, dtype, 1e-5)


def run(
    backbone: str = "torch_densenet121",
    dtype: str = "float32",
    images: int = 5,
    size: int = 224,
    steps: int = 10,
    rounds: int = 5,
    pytorch: bool = False,
) -> None:
    """Measures all ways and writes the result.

    Args:
        backbone: Name of our backbone.
        dtype: float32 or bfloat16.
        images: Images in a batch, of nine crops each.
        size: Height and width of a crop.
        steps: Steps in a round.
        rounds: Number of rounds.
        pytorch: Whether to measure PyTorch's DenseNet-121 too.
    """
    ways: dict[str, Any] = {}
    for strategy in ("attention", "plain"):
        config = config_of(strategy, backbone=backbone, dtype=dtype, images=images, size=size)
        ways[strategy] = ours.loop(ours.Step(train.setup(config)))
    if pytorch:
        ways["pytorch"] = _torch(dtype, images, size)
    taken = measure.seconds(ways, repeats=rounds, calls=steps)
    patches = images * CROPS
    rows = [
        {
            "way": name,
            "patches_per_second": patches / each["median"],
            "of_plain": taken["plain"]["median"] / each["median"],
            "rounds": [patches / seconds for seconds in each["all"]],
        }
        for name, each in taken.items()
    ]
    batch = [images, CROPS, size]
    result = measure.write("patch_throughput", rows, backbone=backbone, batch=batch, dtype=dtype)
    print(tables.patch_throughput(result))


if __name__ == "__main__":
    measure.command_line(run)
