r"""Plain PyTorch fine-tuning of EfficientNet-Lite0: what ``configs/ham_lite0.py:none`` has to beat.

    python -m references.torch_finetune --config=configs/ham_lite0.py \
        --config.dataset.data_dir=data/ham10000 --workdir=runs/lite0/torch

As a PyTorch user writes it: timm's network, cross-entropy with class weights and label smoothing,
AdamW with two groups of parameters, warm-up and cosine, channels last, no exponential moving
average, the last epoch evaluated. Data set, pixels, split, epochs, batch size, rates and the rule
of decision are the config's; the images are turned, flipped and jittered batch by batch. Writes
what `jaxattn.compare` and ``benchmarks.runs`` read.
"""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl import flags
from ml_collections import ConfigDict

from jaxattn import cli, files, losses, metrics, pretrained
from jaxattn import config as configs
from jaxattn.convert import torch_files
from jaxattn.data import load, loaders
from jaxattn.evaluation import predictions
from references import torch_models

NETWORK = "tf_efficientnet_lite0"


def network(classes: int) -> Any:
    """The network of timm with ImageNet's weights and a new head."""
    import timm

    assert torch_models.torchvision  # timm imports once torchvision's operations are defined
    net: Any = timm.create_model(NETWORK)
    arrays = torch_files.read(pretrained.package_file("efficientnet_lite0")).values()
    named = zip(net.state_dict(), arrays, strict=True)
    net.load_state_dict({name: torch.tensor(array) for name, array in named})
    net.reset_classifier(classes)
    return net.to(memory_format=torch.channels_last)


def augmented(images: torch.Tensor, config: ConfigDict, rng: np.random.Generator) -> torch.Tensor:
    """A batch in [0, 1], each image flipped, turned by quarters and jittered in colour."""
    for mirrored in (
        lambda x: x.flip(2),
        lambda x: x.flip(3),
        lambda x: x.transpose(2, 3),
    ):
        chosen = torch.from_numpy(rng.integers(2, size=(len(images), 1, 1, 1)) == 1)
        images = torch.where(chosen, mirrored(images), images)

    def drawn(reach: float) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(-reach, reach, (len(images), 1, 1, 1)).astype("f"))

    images = images + drawn(config.augment.brightness)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (1 + drawn(config.augment.contrast)) * (images - mean)
    grey = images.mean(1, keepdim=True)
    return (grey + (1 + drawn(config.augment.saturation)) * (images - grey)).clamp(0, 1)


def train(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """Trains and evaluates on the test part.

    Returns:
        What is written to the folder's ``evaluation/test.json``: images, minutes, metrics.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    dataset, split = load.load_split(config)
    size = config.dataset.image_size
    pixels = torch.from_numpy(loaders.decode_all(dataset, (size, size), "")["image"])
    pixels = pixels.permute(0, 3, 1, 2)
    labels = torch.from_numpy(dataset.labels.astype(np.int64))
    counts = np.bincount(dataset.labels[split["train"]], minlength=len(dataset.class_names))
    weights = losses.class_weights(
        dataset.labels[split["train"]],
        dataset.class_names,
        exponent=config.loss.class_weight_exponent,
    )
    net = network(len(dataset.class_names))
    loss_of = torch.nn.CrossEntropyLoss(
        torch.tensor(weights, dtype=torch.float32),
        label_smoothing=config.loss.label_smoothing,
    )
    head = [*net.get_classifier().parameters()]
    body = [p for p in net.parameters() if all(p is not each for each in head)]
    rate, rates = config.optimizer.learning_rate, config.optimizer.rates
    groups = [{"params": body, "lr": rate * rates.backbone}, {"params": head, "lr": rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.optimizer.weight_decay)
    rows, batch = split["train"], config.batch_size
    total = config.epochs * (len(rows) // batch)
    warm = max(1, round(config.optimizer.warmup * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warm, (1 + math.cos(math.pi * max(0, step - warm) / (total - warm))) / 2
        ),
    )
    start = time.perf_counter()
    for epoch in range(config.epochs):
        net.train()
        order = rng.permutation(rows)
        for at in range(0, len(rows) - batch + 1, batch):
            chosen = torch.from_numpy(order[at : at + batch])
            images = augmented(pixels[chosen].float() / 255, config, rng) * 2 - 1
            loss = loss_of(
                net(images.contiguous(memory_format=torch.channels_last)), labels[chosen]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{config.epochs}: loss {loss.item():.4f}", flush=True)
    minutes = (time.perf_counter() - start) / 60
    return _evaluate(net, pixels, dataset, split["test"], counts, config, folder, minutes)


@torch.inference_mode()
def _evaluate(
    net: torch.nn.Module,
    pixels: torch.Tensor,
    dataset: Any,
    rows: np.ndarray,
    counts: np.ndarray,
    config: ConfigDict,
    folder: Path,
    minutes: float,
) -> dict[str, Any]:
    net.eval()
    found = [
        net(pixels[torch.from_numpy(part)].float() / 127.5 - 1).softmax(-1).numpy()
        for part in np.array_split(rows, max(1, len(rows) // config.evaluation.batch_size))
    ]
    probabilities = np.concatenate(found).astype(np.float64)
    probabilities /= probabilities.sum(-1, keepdims=True)
    exponent = config.evaluation.logit_adjustment
    decided = metrics.decide(probabilities, counts / counts.sum(), exponent)
    table = predictions.of_dataset(dataset, rows, probabilities, decided)
    predictions.write(folder / "evaluation" / "test_predictions.csv", table)
    measured = metrics.classification(table.labels, probabilities, dataset.class_names, decided)
    result = {"images": len(rows), "minutes": minutes, "metrics": measured}
    files.write_json(folder / "evaluation" / "test.json", result)
    return result


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    result = train(configs.resolved(flags.FLAGS.config), cli.workdir())
    measured = result["metrics"]
    print(
        f"balanced accuracy {measured['balanced_accuracy']:.3f}, "
        f"macro auc {measured['macro']['auc']:.3f}, {result['minutes']:.1f} minutes of training"
    )


if __name__ == "__main__":
    cli.define_config_flags("The folder to write to.")
    cli.run_main(main)
