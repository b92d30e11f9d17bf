"""Images per second from disk to a batch on the device, and how long a training step waits.

``benchmarks/README.md`` says what is measured and how.

    python -m benchmarks.input_pipeline [--tensorflow_python=PATH]
"""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from benchmarks import measure, ours, tables
from benchmarks.peers.steps import Flow
from benchmarks.process import Peers
from jaxattn import steps, train
from jaxattn.data.loaders import MAX_THREADS, Loader, decode_all
from jaxattn.data.samplers import Sampler
from jaxattn.data.sources.source_index import SourceImage, SourceIndex
from jaxattn.data.synthetic import dataset as synthetic
from jaxattn.data.tfds import reader, writer
from jaxattn.errors import invalid
from jaxattn.runtime import devices

#: Pipelines of others.
PEERS = ("tf.data", "tf.data, aliased", "DataLoader")
#: Mean difference, in grey levels, up to which two pipelines read the same images: JPEG decoders
#: round differently.
SAME_PIXELS = 2.0
#: More batches than any pipeline has in flight: uncounted ones before and after a measurement.
AHEAD = min(MAX_THREADS, 2 * (os.cpu_count() or 1)) + 4
#: Measurements of a training loop for each of a rate: its goal is within one per cent of a step.
TURNS = 5
#: Standard deviation of sensor noise, in grey levels.
NOISE = 3.0
#: Class names of the images written to disk; they do not matter.
CLASSES = ("even", "odd")


def loader_flow(loader: Loader, sampler: Sampler) -> Flow:
    """Batches of our loader on the device."""
    draw = jax.jit(lambda data, batch: steps.pixels("image", data, batch))

    def start(count: int) -> Iterator[jax.Array]:
        for batch in loader.training(sampler, 0, count + AHEAD):
            pixels = draw(loader.data, batch) if loader.data else batch["image"]
            yield jax.block_until_ready(pixels)

    return Flow(start, AHEAD)


def draw(count: int, shape: tuple[int, int]) -> list[Image.Image]:
    """Synthetic images with sensor noise, of a height and width."""
    dataset = synthetic.load(max(count, len(synthetic.CLASS_NAMES)), shape)

    def one(index: int) -> Image.Image:
        noise = np.random.default_rng(index).normal(0, NOISE, (*shape, 3))
        noisy = np.clip(np.rint(dataset.records[index]["image"] + noise), 0, 255)
        return Image.fromarray(noisy.astype(np.uint8))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, range(count)))


def write_images(folder: Path, images: Sequence[Image.Image]) -> list[Path]:
    """Writes images as JPEG files to a folder, and as a data set to its folder ``prepared``."""
    folder.mkdir()
    rows = []
    for number, image in enumerate(images):
        path = folder / f"{number:05d}.jpg"
        image.save(path, "JPEG", quality=95, subsampling=0)
        dx = CLASSES[number % len(CLASSES)]
        rows.append(SourceImage(path.stem, path.stem, dx, path=path))
    index = SourceIndex("synthetic", "benchmark", folder, CLASSES, "", rows, {}, {})
    writer.write(index, folder / "prepared")
    return [row.path for row in rows]


def rates(
    name: str, folder: Path, size: int, batch: int, calls: int, repeats: int
) -> list[dict[str, Any]]:
    """Rows with the images per second of every pipeline on one folder's images.

    Args:
        name: Name of the images.
        folder: See `write_images`.
        size: Height and width of what is read.
        batch: Images in a batch.
        calls: Batches in a measurement.
        repeats: Number of measurements of each pipeline.

    Raises:
        InputError: A pipeline reads other pixels than ours.
    """
    paths = sorted(folder.glob("*.jpg"))
    dataset = reader.load(folder / "prepared", size).decoding(())
    rows = np.arange(len(paths))
    sampler = Sampler(rows, dataset.labels[rows], batch, drop_last=True)
    order = [str(paths[sampler[i]]) for i in range((calls + 2 * AHEAD) * batch)]
    own = {}
    for way, kind in {"Grain": "grain", "in_memory": "in_memory"}.items():
        config = ConfigDict({"name": kind, "workers": 0})
        own[way] = loader_flow(Loader(dataset, size, config, devices.mesh()), sampler)
    with Peers(PEERS, "input_pipelines") as peers:
        found = peers.prepare(paths=order, size=size, batch=batch, warm=AHEAD)
        for way, flow in own.items():
            first, *_ = flow.start(1)
            found[way] = {"first": np.asarray(first)}
        reference = found["Grain"]["first"].astype(int)
        for way, each in found.items():
            each["difference"] = float(np.abs(each.pop("first") - reference).mean())
            if each["difference"] > SAME_PIXELS:
                raise invalid(
                    f"{way}, mean difference from our pixels",
                    f"at most {SAME_PIXELS} grey levels",
                    f"{each['difference']:.2f}",
                )
        took = measure.seconds({**peers.ready, **own}, repeats=repeats, calls=calls)
    for way, each in took.items():
        found[way] |= {
            "images_per_second": batch / each["median"],
            "lowest": batch / each["max"],
            "highest": batch / each["min"],
            "grain_speedup": each["median"] / took["Grain"]["median"],
        }
    found |= {way: {"skipped": why} for way, why in peers.skipped.items()}
    since = time.perf_counter()
    decode_all(dataset, size)
    found["in_memory"]["filling"] = len(dataset) / (time.perf_counter() - since)
    length = float(np.mean([path.stat().st_size for path in paths]))
    facts = {"measured": "rate", "images": name, "bytes": length, "size": size}
    return [facts | {"pipeline": way} | values for way, values in found.items()]


def waiting(
    name: str, folder: Path, size: int, width: int, batch: int, calls: int, repeats: int
) -> list[dict[str, Any]]:
    """Rows with the seconds of a small model's training step, in place and from each loader.

    Args:
        name: Name of the images.
        folder: See `write_images`.
        size: Height and width of the training images.
        width: Width of the model.
        batch: Images in a batch.
        calls: Steps in a measurement.
        repeats: Number of measurements of each loop.
    """
    config = ours.small(size, width, batch)
    config.dataset.update(name="prepared", data_dir=str(folder / "prepared"))
    config.split.update(test=0.2, validation=0.0)
    in_memory = ours.Step(train.setup(config))
    config.loader.name = "grain"
    loops = {
        "in place": ours.loop(in_memory, AHEAD, in_place=True),
        "in_memory": ours.loop(in_memory, AHEAD),
        "grain": ours.loop(ours.Step(train.setup(config)), AHEAD),
    }
    took = measure.seconds(loops, repeats=repeats, calls=calls)
    facts = {"measured": "waiting", "images": name, "size": size}
    alone = took["in place"]["median"]
    return [
        facts
        | {"pipeline": way, "step_ms": 1e3 * each["median"]}
        | {"share": alone / each["median"]}
        for way, each in took.items()
    ]


def run(
    images: int = 64,
    height: int = 450,
    small: int = 256,
    size: int = 224,
    batch: int = 64,
    batches: int = 8,
    repeats: int = 5,
    step_size: int = 64,
    width: int = 24,
    steps: int = 10,
) -> None:
    """Measures all pipelines and loops, and writes the result.

    Args:
        images: Number of images, which are read again and again.
        height: Height of the images; they are 4/3 as wide.
        small: Height and width of the small images.
        size: Height and width of what is read; 299 for Inception.
        batch: Images in a batch.
        batches: Batches in a measurement.
        repeats: Number of measurements of each pipeline.
        step_size: Height and width of the images of the training step.
        width: Width of the model of the training step.
        steps: Training steps in a measurement.
    """
    wide = height * 4 // 3
    large = draw(images, (height, wide))
    middle = ((wide - height) // 2, 0, (wide + height) // 2, height)
    reduced = [each.resize((small, small), Image.Resampling.LANCZOS, middle) for each in large]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, drawn in {f"{wide}×{height}": large, f"{small}×{small}": reduced}.items():
            folder = Path(temporary, name)
            write_images(folder, drawn)
            rows += rates(name, folder, size, batch, batches, repeats)
        rows += waiting(name, folder, step_size, width, batch, steps, TURNS * repeats)
    print(tables.input_pipeline(measure.write("input_pipeline", rows, size=size, batch=batch)))


if __name__ == "__main__":
    measure.command_line(run, devices=2)
