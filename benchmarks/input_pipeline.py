"""Images per second from disk to a batch on the device, and how long a training step waits.

    python -m benchmarks.input_pipeline [--tensorflow_python=PATH]

**Rates.** The same JPEGs, in the same shuffled order, in batches of the same uint8 pixels: by our
Grain loader from ArrayRecord files, by the in-memory loader (the images are on the device already,
and drawing a batch of them is measured; ``filling`` is the rate at which they got there), by
tf.data with and without antialiasing, and by PyTorch's DataLoader from JPEG files. Batches of
tf.data, and of PyTorch without CUDA, stay in the host's memory. Every pipeline uses all cores, is
warmed up first, and runs on until nothing is in flight; the pipelines take turns. The pixels of
the first batch are compared with ours. tf.data without antialiasing, the usual choice, is a cheaper
filter, and further from ours.

The images are the synthetic ones with sensor noise added, so that files are as large as a
camera's: 600×450 pixels of about 190 KB, and their centres reduced to 256×256.

**Waiting.** Steps of the real training loop with images from the loader, against the same step on
one batch that is in place; the difference is the time spent waiting. On a CPU, decoding takes cores
from the step itself.
"""

import contextlib
import os
import sys
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
from benchmarks.peers.steps import steady
from benchmarks.process import Process, Timed, Unavailable
from jaxattn import steps
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


class Ours:
    """Our loader, as `measure.seconds` expects it: seconds of a batch on the device."""

    def __init__(self, loader: Loader, sampler: Sampler):
        self._loader, self._sampler = loader, sampler
        self._draw = jax.jit(lambda data, batch: steps.pixels("image", data, batch))

    def _batches(self, count: int) -> Iterator[jax.Array]:
        data = self._loader.data
        for batch in self._loader.training(self._sampler, 0, count):
            yield self._draw(data, batch) if data else batch["image"]

    def first(self) -> np.ndarray:
        """The pixels of the first batch."""
        (pixels,) = self._batches(1)
        return np.asarray(pixels)

    def time(self, calls: int) -> float:
        """Mean seconds of a batch."""
        batches = (each.block_until_ready() for each in self._batches(calls + 2 * AHEAD))
        return steady(batches, jax.block_until_ready, AHEAD, calls)


def draw(count: int, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Synthetic images with sensor noise, uint8 ``(*shape, 3)``."""
    dataset = synthetic.load(max(count, len(synthetic.CLASS_NAMES)), shape)

    def one(index: int) -> np.ndarray:
        noise = np.random.default_rng(index).normal(0, NOISE, (*shape, 3))
        return np.clip(np.rint(dataset.records[index]["image"] + noise), 0, 255).astype(np.uint8)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(one, range(count))


def write_images(folder: Path, images: Sequence[Image.Image]) -> None:
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


def drawn(folder: Path, count: int, shape: tuple[int, int], small: int) -> dict[str, Path]:
    """Draws images and writes them at both sizes; the folder of each, by name."""
    large = [Image.fromarray(image) for image in draw(count, shape)]
    height, width = shape
    middle = ((width - height) // 2, 0, (width + height) // 2, height)
    reduced = [each.resize((small, small), Image.Resampling.LANCZOS, middle) for each in large]
    made = {f"{width}×{height}": large, f"{small}×{small}": reduced}
    for name, images in made.items():
        write_images(folder / name, images)
    return {name: folder / name for name in made}


class Peer:
    """A pipeline in another process."""

    def __init__(self, process: Process, question: dict[str, Any]):
        self._process, self._question = process, question
        self.time = Timed(process, question | {"warm": AHEAD}).time

    def first(self) -> np.ndarray:
        """The pixels of the first batch."""
        return self._process.ask("first", **self._question)


def rates(
    name: str, folder: Path, size: int, batch: int, calls: int, repeats: int, pythons: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows with the images per second of every pipeline on one folder's images.

    Args:
        name: Name of the images.
        folder: See `write_images`.
        size: Height and width of what is read.
        batch: Images in a batch.
        calls: Batches in a measurement.
        repeats: Number of measurements of each pipeline.
        pythons: Interpreters of ``PEERS``.

    Raises:
        InputError: A pipeline reads other pixels than ours.
    """
    paths = sorted(folder.glob("*.jpg"))
    dataset = reader.load(folder / "prepared", size).decoding(())
    rows = np.arange(len(paths))
    sampler = Sampler(rows, dataset.labels[rows], batch, drop_last=True)
    order = [str(paths[sampler[i]]) for i in range((calls + 2 * AHEAD) * batch)]
    mesh, found = devices.mesh(), {}
    ways: dict[str, Ours | Peer] = {}
    for way, kind in {"Grain": "grain", "in_memory": "in_memory"}.items():
        config = ConfigDict({"name": kind, "workers": 0})
        ways[way] = Ours(Loader(dataset, size, config, mesh), sampler)
    with contextlib.ExitStack() as stack:
        for way, python in zip(PEERS, pythons, strict=True):
            question = {"reader": way, "paths": order, "size": size, "batch": batch}
            try:
                if not python:
                    raise Unavailable("no interpreter given")
                process = stack.enter_context(Process(python, "benchmarks.peers.input_pipelines"))
                found[way] = {"version": process.ask("version", reader=way)}
                ways[way] = Peer(process, question)
            except Unavailable as error:
                found[way] = {"skipped": str(error)}
        reference = ways["Grain"].first().astype(int)
        for way, pipeline in ways.items():
            difference = float(np.abs(pipeline.first() - reference).mean())
            found.setdefault(way, {})["difference"] = difference
            if difference > SAME_PIXELS:
                raise invalid(
                    f"{way}, mean difference from our pixels",
                    f"at most {SAME_PIXELS} grey levels",
                    f"{difference:.2f}",
                )
        for way, took in measure.seconds(ways, repeats=repeats, calls=calls).items():
            found[way] |= {
                "images_per_second": batch / took["median"],
                "lowest": batch / took["max"],
                "highest": batch / took["min"],
            }
        for each in found.values():
            if "images_per_second" in each:
                ours_rate = found["Grain"]["images_per_second"]
                each["grain_speedup"] = ours_rate / each["images_per_second"]
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
    in_memory = ours.Step(ours.setup(config))
    config.loader.name = "grain"
    loops = {
        "in place": ours.Loop(in_memory, AHEAD, in_place=True),
        "in_memory": ours.Loop(in_memory, AHEAD),
        "grain": ours.Loop(ours.Step(ours.setup(config)), AHEAD),
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
    tensorflow_python: str = sys.executable,
    torch_python: str = sys.executable,
    images: int = 64,
    drawn_height: int = 450,
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
        tensorflow_python: An interpreter with TensorFlow; empty for none.
        torch_python: An interpreter with PyTorch; empty for none.
        images: Number of images, which are read again and again.
        drawn_height: Height of the images; they are 4/3 as wide.
        small: Height and width of the small images.
        size: Height and width of what is read; 299 for Inception.
        batch: Images in a batch.
        batches: Batches in a measurement.
        repeats: Number of measurements of each pipeline.
        step_size: Height and width of the images of the training step.
        width: Width of the model of the training step.
        steps: Training steps in a measurement.
    """
    pythons = (tensorflow_python, tensorflow_python, torch_python)
    with tempfile.TemporaryDirectory() as temporary:
        shape = (drawn_height, drawn_height * 4 // 3)
        folders = drawn(Path(temporary), images, shape, small)
        rows = []
        for name, folder in folders.items():
            rows += rates(name, folder, size, batch, batches, repeats, pythons)
        rows += waiting(name, folder, step_size, width, batch, steps, TURNS * repeats)
    print(tables.input_pipeline(measure.write("input_pipeline", rows, size=size, batch=batch)))


if __name__ == "__main__":
    measure.command_line(run, devices=2)
