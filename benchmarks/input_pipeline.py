"""Images per second from disk to a batch on the device, and what a training step waits for them.

    python benchmarks/input_pipeline.py [--data_dir=DIR] [--tensorflow_python=PATH] [--smoke]

**Rates.** The same JPEGs, in the same shuffled order, in batches of the same uint8 pixels: by our
Grain loader from ArrayRecord files, by the resident loader (the images are on the device already,
and what is measured is drawing a batch of them; ``filling`` is the rate at which they came there),
by tf.data with and without antialiasing and by PyTorch's DataLoader from JPEG files. tf.data's
batches and those of a PyTorch without CUDA stay in the host's memory. Every pipeline runs on all
cores, is warmed up first, goes on at the end until nothing is under way, and the pipelines take
turns. The pixels of the first batch are compared with ours. tf.data without antialiasing, which is
what most scripts do, is the cheaper filter, and further from ours.

Without ``--data_dir``, a folder that a ``tools/prepare_*.py`` wrote, the images are the embedded
ones with the grain of a sensor, so that files are as long as a camera's: 600×450 pixels of about
190 KB, and their middle shrunk to 256×256.

**Waiting.** Steps of the real training loop, with images that the loader brings, against the same
step on one batch that is in place; what the loop takes longer is the share spent waiting. On a CPU
decoding takes its cores from the step itself.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from benchmarks import measure
from benchmarks.peers.elsewhere import Process, Unavailable
from jaxattn import experiment
from jaxattn.config import base
from jaxattn.data.loaders import MOST_THREADS, Loader, decode_all
from jaxattn.data.samplers import Sampler
from jaxattn.data.sources.source_index import Row, SourceIndex
from jaxattn.data.synthetic import dataset as synthetic
from jaxattn.data.tfds import reader, writer
from jaxattn.errors import InputError
from jaxattn.cli import run_main
from jaxattn.runtime import compilation, devices
from jaxattn.steps import pixels_of

NAME = "input_pipeline"

#: Pipelines of others, and whose interpreter runs each.
PEERS = {
    "tf.data": "tensorflow_python",
    "tf.data, aliased": "tensorflow_python",
    "DataLoader": "torch_python",
}
SCRIPT = Path(__file__).parent / "peers" / "input_pipelines.py"
#: Mean difference of pixels, in grey levels, up to which two pipelines read the same images: JPEG
#: decoders round differently.
SAME_PIXELS = 2.0
#: More batches than any pipeline has under way: to warm up, and to go on for at the end.
AHEAD = min(MOST_THREADS, 2 * (os.cpu_count() or 1)) + 4
#: Turns of the loops for each of a rate: the goal is within a hundredth of a step.
TURNS = 5
#: Standard deviation of the grain of a sensor, in grey levels.
GRAIN = 3.0
#: Height and width of the images that are drawn, and of the small ones made of them.
DRAWN, SMALL = (450, 600), 256
#: Their classes, which are of no matter here.
CLASSES = ("even", "odd")

#: Flags of a smoke test.
TOY = {"size": 32, "images": 16, "batch": 8, "batches": 2, "repeats": 1}
TOY |= {"step_size": 32, "width": 8, "steps": 2}

#: What is to be reached: the resident loop's share of the step in place; Grain's rate over tf.data.
RESIDENT, OVER_TF_DATA = 0.99, 1.0


class Ours:
    """Our loader as `measure.seconds` wants it: seconds of a batch on the device."""

    def __init__(self, loader: Loader, plan: Sampler, count: int):
        self._loader, self._plan, self._count = loader, plan, count
        self._draw = jax.jit(lambda data, batch: pixels_of("image", data, batch))

    def __call__(self) -> None:
        """Never: it measures its own time."""

    def _batches(self, count: int) -> Iterator[jax.Array]:
        data = self._loader.data
        for batch in self._loader.training(self._plan, 0, count):
            yield self._draw(data, batch) if data else batch["image"]

    def first(self) -> np.ndarray:
        """The pixels of the first batch."""
        (pixels,) = self._batches(1)
        return np.asarray(pixels)

    def time(self, calls: int) -> float:
        """Mean seconds of a batch, once all is under way."""
        del calls
        batches = self._batches(self._count + 2 * AHEAD)
        for _ in range(AHEAD):
            next(batches).block_until_ready()
        since = time.perf_counter()
        for _ in range(self._count):
            next(batches).block_until_ready()
        seconds = time.perf_counter() - since
        for _ in batches:  # What is under way ends before another way is measured.
            pass
        return seconds / self._count


class Peer:
    """A pipeline in another process, likewise."""

    def __init__(self, process: Process, question: Mapping[str, Any]):
        self._process, self._question = process, question

    def __call__(self) -> None:
        """Never: it measures its own time."""

    def first(self) -> np.ndarray:
        """The pixels of the first batch."""
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/pixels.npy"
            self._process.ask(**self._question, out=out)
            return np.load(out)

    def time(self, calls: int) -> float:
        """Mean seconds of a batch, once all is under way."""
        del calls
        return self._process.ask(**self._question)


def draw(count: int, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Embedded images with the grain of a sensor, uint8 ``(*shape, 3)``."""
    dataset = synthetic.load(max(count, len(synthetic.CLASS_NAMES)), shape)

    def one(index: int) -> np.ndarray:
        grain = np.random.default_rng(index).normal(0, GRAIN, (*shape, 3))
        return np.clip(np.rint(dataset.records[index]["image"] + grain), 0, 255).astype(np.uint8)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(one, range(count))


def write_images(folder: Path, images: Sequence[Image.Image]) -> None:
    """Writes images as JPEG files of a folder, and as a data set in its folder ``prepared``."""
    folder.mkdir()
    rows = []
    for index, image in enumerate(images):
        path = folder / f"{index:05d}.jpg"
        image.save(path, "JPEG", quality=95, subsampling=0)
        dx = CLASSES[index % len(CLASSES)]
        rows.append(Row(image_id=path.stem, lesion_id=path.stem, dx=dx, image=path))
    inventory = SourceIndex("embedded", "benchmark", folder, CLASSES, "", rows, {}, {})
    writer.prepare(inventory, folder / "prepared")


def embedded(folder: Path, count: int, shape: tuple[int, int], small: int) -> dict[str, Path]:
    """Draws the images and writes them at both sizes; by name, the folder of each."""
    large = [Image.fromarray(image) for image in draw(count, shape)]
    height, width = shape
    middle = ((width - height) // 2, 0, (width + height) // 2, height)
    reduced = [each.resize((small, small), Image.Resampling.LANCZOS, middle) for each in large]
    made = {f"{width}×{height}": large, f"{small}×{small}": reduced}
    for name, images in made.items():
        write_images(folder / name, images)
    return {name: folder / name for name in made}


def extracted(folder: Path, data_dir: Path, count: int) -> dict[str, Path]:
    """Writes the first JPEGs of a prepared data set as files; by name, the folder with both."""
    records = reader.open_records(data_dir)
    out = folder / data_dir.resolve().name
    out.mkdir()
    for index in range(min(count, len(records))):
        (out / f"{index:05d}.jpg").write_bytes(records[index]["image"])
    (out / "prepared").symlink_to(data_dir.resolve())
    with Image.open(out / "00000.jpg") as image:
        return {f"{out.name} {image.width}×{image.height}": out}


def rates(name: str, folder: Path, given: Any) -> list[dict[str, Any]]:
    """Images per second of every pipeline on one folder's images."""
    files = sorted(path.name for path in folder.glob("*.jpg"))
    dataset = reader.load(folder / "prepared", given.size).decoding(())
    rows = np.arange(len(files))
    plan = Sampler(rows, dataset.labels[rows], given.batch, drop_last=True)
    order = [files[plan[i]] for i in range((given.batches + 2 * AHEAD) * given.batch)]
    question = {"files": order, "size": given.size, "batch": given.batch}
    question |= {"warm": AHEAD, "batches": given.batches}
    mesh = devices.mesh()
    loaders = {"Grain": ("grain", 0), "resident": ("resident", 0)}
    if given.workers:
        loaders[f"Grain, {given.workers} processes"] = ("grain", given.workers)
    ways: dict[str, Any] = {}
    for way, (kind, workers) in loaders.items():
        config = ConfigDict({"name": kind, "workers": workers})
        ways[way] = Ours(Loader(dataset, given.size, config, mesh), plan, given.batches)
    found: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        for way, whose in PEERS.items():
            python = given[whose].value
            try:
                if not python:
                    raise Unavailable(f"--{whose} not given")
                process = Process([python, str(SCRIPT), way, str(folder)])
            except Unavailable as error:
                found[way] = {"skipped": str(error)}
                continue
            ways[way] = Peer(stack.enter_context(process), question)
            found[way] = {"version": process.about}
        reference = ways["Grain"].first().astype(int)
        for way, pipeline in ways.items():
            difference = float(np.abs(pipeline.first() - reference).mean())
            found.setdefault(way, {})["difference"] = difference
            if difference > SAME_PIXELS:
                raise InputError(
                    f"{way}: its pixels differ from ours by {difference:.2f} levels on average, "
                    f"at most {SAME_PIXELS} wanted"
                )
        for way, took in measure.seconds(ways, repeats=given.repeats).items():
            found[way] |= {
                "images_per_second": given.batch / took["median"],
                "lowest": given.batch / took["max"],
                "highest": given.batch / took["min"],
            }
    since = time.perf_counter()
    decode_all(dataset, given.size)
    filling = len(dataset) / (time.perf_counter() - since)
    found["resident"]["filling"] = filling
    size = np.mean([(folder / each).stat().st_size for each in files])
    facts = {"measured": "rate", "images": name, "bytes": float(size), "size": given.size}
    return [facts | {"pipeline": way} | values for way, values in found.items()]


class Loop:
    """Steps of the training loop, as `measure.seconds` wants them: seconds of a step."""

    def __init__(
        self, built: experiment.Experiment, step: Any, state: Any, count: int, in_place: bool
    ):
        self._built, self._step = built, step
        self._state = devices.put_replicated(built.mesh, state)
        self._count, self._in_place = count, in_place

    def __call__(self) -> None:
        """Never: it measures its own time."""

    def _batches(self) -> Iterator[Any]:
        built = self._built
        batches = built.loader.training(built.plan, 0, AHEAD + 2 * self._count)
        if not self._in_place:
            return batches
        first = next(batches)
        return (first for _ in range(AHEAD + self._count))

    def time(self, calls: int) -> float:
        """Mean seconds of a step; what was prefetched before the first one is used up by then."""
        del calls
        data, batches = self._built.loader.data, self._batches()
        for _ in range(AHEAD):
            self._state, metrics = self._step(self._state, data, next(batches))
        jax.block_until_ready(metrics)
        since = time.perf_counter()
        for _ in range(self._count):
            self._state, metrics = self._step(self._state, data, next(batches))
        jax.block_until_ready(metrics)
        return (time.perf_counter() - since) / self._count


def waiting(name: str, folder: Path, given: Any) -> list[dict[str, Any]]:
    """The share of a small model's training step that is spent waiting for data."""
    config = base()
    config.dataset.update(
        name="prepared", data_dir=str(folder / "prepared"), image_size=given.step_size
    )
    config.split.update(test=0.2, validation=0.0)
    config.model.width = given.width
    config.batch_size = given.batch
    loops: dict[str, Callable[[], Any]] = {}
    for loader, ways in {"resident": ("in place", "resident"), "grain": ("grain",)}.items():
        own = config.copy_and_resolve_references()
        own.loader.name = loader
        built = experiment.build(own)
        step, state = built.train_step(), jax.device_get(built.initial_state())
        for way in ways:
            loops[way] = Loop(built, step, state, given.steps, in_place=way == "in place")
    took = measure.seconds(loops, repeats=TURNS * given.repeats)
    facts = {"measured": "waiting", "images": name, "size": given.step_size}
    alone = took["in place"]["median"]
    return [
        facts
        | {"pipeline": way, "step_ms": 1e3 * each["median"]}
        | {"share": alone / each["median"]}
        for way, each in took.items()
    ]


def goals(result: Mapping[str, Any]) -> list[measure.Goal]:
    """What was to be reached, and how much of it was; without what was skipped."""
    found, rows = [], result["rows"]
    measured = [row for row in rows if row["measured"] == "rate" and "skipped" not in row]
    for row in measured:
        if row["pipeline"].startswith("tf.data"):
            (own,) = (
                each["images_per_second"]
                for each in measured
                if each["images"] == row["images"] and each["pipeline"] == "Grain"
            )
            what = f"Grain at {OVER_TF_DATA:g}× {row['pipeline']}"
            ratio = own / row["images_per_second"]
            found.append(measure.Goal(what, row["images"], ratio, ratio >= OVER_TF_DATA))
    for row in rows:
        if row["measured"] == "waiting" and row["pipeline"] == "resident":
            what = f"resident data at {RESIDENT:g}× the step in place"
            share = row["share"]
            found.append(measure.Goal(what, row["images"], share, share >= RESIDENT))
    return found


def table(result: Mapping[str, Any]) -> str:
    """Markdown: the rates, the waiting, and the goals."""
    rows = result["rows"]
    lines = [
        f"Batches of {result['batch']} images of {result['size']}×{result['size']}. Difference: "
        "the mean, in grey levels, from Grain's pixels.",
        "",
        "| JPEGs | pipeline | images/s | lowest to highest | difference |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row["measured"] != "rate":
            continue
        if "skipped" in row:
            cells = [f"skipped: {row['skipped']}", "", ""]
        else:
            spread = f"{row['lowest']:,.0f} to {row['highest']:,.0f}"
            cells = [f"{row['images_per_second']:,.0f}", spread, f"{row['difference']:.2f}"]
            if "filling" in row:
                cells[0] += f" (filling {row['filling']:,.0f})"
        about = f" ({row['version']})" if "version" in row else ""
        images = f"{row['images']}, {row['bytes'] / 1e3:.0f} KB"
        lines.append(f"| {images} | {row['pipeline']}{about} | {' | '.join(cells)} |")
    lines += ["", "| training from | pipeline | ms per step | step in place over this |"]
    lines.append("|---|---|---|---|")
    for row in rows:
        if row["measured"] == "waiting":
            images = f"{row['images']} at {row['size']}×{row['size']}"
            cells = [images, row["pipeline"], f"{row['step_ms']:.2f}", f"{row['share']:.1%}"]
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines += [f"- {goal.case}, {goal.verdict}: {goal.value:.3f}." for goal in goals(result)]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    given = flags.FLAGS
    if given.smoke:
        for name, value in TOY.items():
            given[name].value = value
    devices.split_cpu(given.cpu_devices)
    compilation.use_cache()
    with tempfile.TemporaryDirectory() as temporary:
        if given.data_dir:
            folders = extracted(Path(temporary), Path(given.data_dir), given.images)
        else:
            shape, small = ((96, 128), 64) if given.smoke else (DRAWN, SMALL)
            folders = embedded(Path(temporary), given.images, shape, small)
        rows = [row for name, folder in folders.items() for row in rates(name, folder, given)]
        last = list(folders)[-1]
        rows += waiting(last, folders[last], given)
    result = {"size": given.size, "batch": given.batch}
    path = measure.write(NAME, rows, **result)
    print(table(result | {"rows": rows}), end="")
    print(f"written to {path}")


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", "", "A prepared data set; default: the embedded images.")
    flags.DEFINE_string("tensorflow_python", "", "A Python with TensorFlow, for tf.data.")
    flags.DEFINE_string("torch_python", sys.executable, "A Python with PyTorch; '' for none.")
    flags.DEFINE_integer("images", 64, "Images to read again and again.")
    flags.DEFINE_integer("size", 224, "Height and width of what is read; 299 for Inception.")
    flags.DEFINE_integer("batch", 64, "Images in a batch.")
    flags.DEFINE_integer("batches", 8, "Batches of one measurement.")
    flags.DEFINE_integer("repeats", 5, "Measurements of each pipeline.")
    flags.DEFINE_integer("workers", 0, "Measure Grain with so many processes too.")
    flags.DEFINE_integer("cpu_devices", 2, "Devices to make of a CPU's cores.")
    flags.DEFINE_integer("step_size", 64, "Height and width of the images of the training step.")
    flags.DEFINE_integer("width", 24, "Width of the model of the training step.")
    flags.DEFINE_integer("steps", 10, "Steps of one measurement.")
    flags.DEFINE_bool("smoke", False, "Whether to run a toy in seconds.")
    run_main(main)
