"""Patches per second in training: crops with attention, plain images, and the same in PyTorch.

    python benchmarks/patch_throughput.py [--backbone=torch_densenet121] [--images=5] [--size=224]

trains initial patch attention on nine crops of each image, the same backbone on as many plain
images, and, where PyTorch and torchvision are installed, the published model on crops that are in
memory already. One after the other, in turn, ``--rounds`` times; a result is the median of its
rounds. In each round a first step, which finds caches and memory as the others have left them, is
not counted.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
from absl import flags
from ml_collections import ConfigDict

from benchmarks import measure
from jaxattn import experiment
from jaxattn.config import base
from jaxattn.cli import run_main
from jaxattn.runtime import devices

NAME = "patch_throughput"
CROPS = 9
#: Goal: speed of attention on crops over that of the same backbone on plain images.
GOAL = 0.97


def config_of(given: Any, strategy: str) -> ConfigDict:
    """A run on synthetic images of twice a crop's height, of the shape of the paper's."""
    config = base()
    config.dataset.image_size = (2 * given.size, 2 * given.size * 4 // 3)
    config.dataset.num_images = 140
    config.augment.update(rotation=0.0, shift=0.0, zoom=0.0, brightness=32 / 255, saturation=0.5)
    config.normalisation = "unit"
    config.dtype = given.dtype
    config.loader.name = "resident"
    config.model = ConfigDict({"name": "gessert2019", "backbone": given.backbone})
    config.crops.update(size=given.size, count=CROPS)
    if strategy == "attention":
        config.model.attention = ("initial",)
        config.crops.strategy = "ordered"
        config.batch_size = given.images
    else:
        config.dataset.image_size = given.size
        config.batch_size = given.images * CROPS
    config.optimizer.update(weight_decay=0.0, warmup=0.0, schedule="constant")
    return config


def ours(config: ConfigDict, steps: int) -> Iterator[float]:
    """Seconds of so many steps, again and again, after one that is not counted."""
    built = experiment.build(config)
    state, step = built.initial_state(), built.train_step()
    batches = built.loader.training(built.plan, 0, 10**6)
    data = built.loader.data
    while True:
        state, metrics = step(state, data, next(batches))
        jax.block_until_ready(metrics)
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, data, next(batches))
        jax.block_until_ready(metrics)
        yield time.perf_counter() - start


def pytorch(given: Any, steps: int) -> Iterator[float]:
    """Likewise of the published model: crops folded into the batch, weighed by a dense layer."""
    import torch

    from benchmarks.peers import torch_vision

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = torch_vision.load().models.densenet121(num_classes=7).to(device)
    dense = torch.nn.Linear(CROPS, CROPS).to(device)
    optimizer = torch.optim.Adam([*network.parameters(), *dense.parameters()], lr=1e-5)
    crops = torch.rand(given.images, CROPS, 3, given.size, given.size, device=device)
    labels = torch.arange(given.images, device=device) % 7

    def step() -> None:
        optimizer.zero_grad()
        kind = torch.bfloat16 if given.dtype == "bfloat16" else torch.float32
        with torch.autocast(device, dtype=kind, enabled=given.dtype == "bfloat16"):
            weights = torch.sigmoid(dense(crops.mean((2, 3, 4))))
            weighed = (crops * weights[..., None, None, None]).flatten(0, 1)
            features = network.features(weighed).mean((2, 3))
            logits = network.classifier(features).unflatten(0, (given.images, CROPS)).mean(1)
            loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    network.train()
    while True:
        step()
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        yield time.perf_counter() - start


def goals(result: Mapping[str, Any]) -> list[measure.Goal]:
    """Attention's share of the speed."""
    rates = {row["way"]: row["patches_per_second"] for row in result["rows"]}
    case = f"{result['backbone']}, {result['dtype']}"
    share = rates["attention"] / rates["plain"]
    return [measure.Goal(f"{GOAL}× plain", case, share, share >= GOAL)]


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each way, and its speed relative to plain images."""
    rates = {row["way"]: row["patches_per_second"] for row in result["rows"]}
    lines = ["| | patches/s, median (rounds) | of plain | goal |", "|---|---|---|---|"]
    for row in result["rows"]:
        rounds = ", ".join(f"{rate:.1f}" for rate in row["rounds"])
        ratio = rates[row["way"]] / rates["plain"]
        goal = goals(result)[0].verdict if row["way"] == "attention" else ""
        lines.append(
            f"| {row['way']} | {rates[row['way']]:.1f} ({rounds}) | {ratio:.3f}× | {goal} |"
        )
    images, crops, size = result["batch"]
    caption = (
        f"{result['backbone']}, {result['dtype']}, {images} images of {crops} crops of {size}×"
    )
    return "\n".join([*lines, "", f"{caption}{size} pixels a step."]) + "\n"


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    given = flags.FLAGS
    if given.smoke:
        given.backbone, given.images, given.size = "densenet_small", 1, 32
        given.steps, given.rounds = 1, 1
    devices.split_cpu(1)  # As training does.
    ways: dict[str, Callable[[], Iterator[float]]] = {
        "attention": lambda: ours(config_of(given, "attention"), given.steps),
        "plain": lambda: ours(config_of(given, "plain"), given.steps),
    }
    if given.pytorch:
        ways["pytorch"] = lambda: pytorch(given, given.steps)
    running = {name: start() for name, start in ways.items()}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, seconds in running.items():
            rates[name].append(given.steps * given.images * CROPS / next(seconds))
    rows = [
        {"way": name, "patches_per_second": statistics.median(each), "rounds": each}
        for name, each in rates.items()
    ]
    further = {
        "backbone": given.backbone,
        "batch": [given.images, CROPS, given.size],
        "dtype": given.dtype,
    }
    measure.write(NAME, rows, **further)
    print(table({**further, "rows": rows}), end="")


if __name__ == "__main__":
    flags.DEFINE_string("backbone", "torch_densenet121", "The backbone.")
    flags.DEFINE_string("dtype", "float32", "float32 or bfloat16.")
    flags.DEFINE_integer("images", 5, "Images in a batch, of nine crops each.")
    flags.DEFINE_integer("size", 224, "Height and width of a crop.")
    flags.DEFINE_integer("steps", 10, "Steps in a round.")
    flags.DEFINE_integer("rounds", 5, "Rounds.")
    flags.DEFINE_bool("pytorch", False, "Whether to measure PyTorch's DenseNet-121 too.")
    flags.DEFINE_bool("smoke", False, "A small network and tiny crops, to see that all runs.")
    run_main(main)
