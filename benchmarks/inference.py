"""Images per second of prediction: the model alone, decoding alone, and from files to CSV.

``benchmarks/README.md`` says what is measured and how.

    python -m benchmarks.inference [--tensorflow_python=PATH]
"""

import io
import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks import input_pipeline, measure, ours, tables
from benchmarks.peers.steps import Ready
from benchmarks.process import Peers
from benchmarks.train_step import STEP, Case
from jaxattn import predict
from jaxattn.data import images as decoding
from jaxattn.models import registry
from jaxattn.submissions import FORMATS

Row = dict[str, Any]


def model_row(case: Case, peers: Sequence[str], repeats: int) -> Row:
    """Times the forward pass of a model in all ways, in turn.

    Args:
        case: The model, batch and size.
        peers: Names of the peers.
        repeats: Number of measurements of each way.

    Raises:
        InputError: Ours does not run.
    """
    with Peers(("ours", *peers), STEP) as running:
        facts = running.prepare(**case.question(), training=False)
        took = measure.seconds(running.ready, repeats=repeats, least=0.3)
    mine = took["ours"]["median"]
    return {
        "measured": "model",
        **case._asdict(),
        "seconds": took,
        "speedup": {way: each["median"] / mine for way, each in took.items()},
        "facts": facts,
        "skipped": running.skipped,
    }


def decoding_row(paths: Sequence[Path], size: int, repeats: int) -> Row:
    """Times decoding on one thread, whole and scaled.

    Args:
        paths: JPEG files.
        size: Height and width to decode to.
        repeats: Number of measurements of each way.
    """
    content = [path.read_bytes() for path in paths]

    def whole(data: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))

    def scaled(data: bytes) -> np.ndarray:
        return decoding.decode_image(data, (size, size))

    def all_by(decode: Callable[[bytes], np.ndarray]) -> Ready:
        return Ready(lambda: [decode(data) for data in content])

    ways = {"whole": all_by(whole), "scaled": all_by(scaled)}
    took = measure.seconds(ways, repeats=repeats)
    apart = [np.abs(whole(data).astype(int) - scaled(data)).mean() for data in content]
    rates = {way: len(paths) / each["median"] for way, each in took.items()}
    facts = {"measured": "decoding", "size": size, "difference": float(np.mean(apart))}
    return {**facts, "images_per_second": rates}


def files_row(model: str, paths: Sequence[Path], size: int, batch: int, repeats: int) -> Row:
    """Times prediction from files to CSV, and its parts.

    Args:
        model: A model of `tables.MODELS`.
        paths: JPEG files, at least a batch.
        size: Height and width of the network's input.
        batch: Images in a batch.
        repeats: Number of measurements of each way.
    """
    config = ours.published(model, batch, "float32", size)
    config.evaluation.batch_size = batch
    run = ours.untrained(config)
    form = FORMATS["csv"](run.class_names)
    pixels = {"image": jax.device_put(np.stack([run.read(path) for path in paths[:batch]]))}

    def files() -> None:
        predict.write(lambda text: None, [run], paths, form)

    def decode() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(run.read, paths):
                pass

    ways = {
        "files": Ready(files),
        "decoding": Ready(decode),
        "model": Ready(lambda: run._step(run.variables, {}, pixels)),
    }
    took = measure.seconds(ways, repeats=repeats, least=0.3)
    images = {"model": batch}
    rates = {way: images.get(way, len(paths)) / each["median"] for way, each in took.items()}
    share = rates["files"] / min(rates["decoding"], rates["model"])
    facts = {"measured": "files", "model": model, "batch": batch, "size": size}
    return {**facts, "images_per_second": rates, "share": share}


def run(
    models: tuple[str, ...] = ("resnet50", "resnet50_sa", "irv2", "irv2_sa"),
    batches: tuple[int, ...] = (1, 64),
    peers: tuple[str, ...] = tables.FORWARD,
    repeats: int = 3,
    size: int = 0,
    from_files: tuple[str, ...] = ("koefler_cnn_sa", "resnet50_sa"),
    images: int = 256,
    height: int = 450,
    decoded: int = 224,
) -> None:
    """Measures everything and writes the result.

    Args:
        models: Names of models, with and without _sa.
        batches: Batch sizes of the model alone; the last one is that of prediction from files.
        peers: Of keras_tensorflow, keras_jax, torch and onnx.
        repeats: Number of measurements of each way.
        size: Height and width of the models' input; 0 for the published size.
        from_files: Models to predict from files with.
        images: Number of files.
        height: Height of the images; they are 4/3 as wide.
        decoded: Height and width to decode to.
    """
    sizes = {name: size or registry.find(name).image_size for name in tables.MODELS}
    rows = [
        model_row(Case(name, batch, "float32", sizes[name]), peers, repeats)
        for name, batch in itertools.product(models, batches)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        drawn = input_pipeline.draw(images, (height, height * 4 // 3))
        paths = input_pipeline.write_images(Path(temporary, "images"), drawn)
        rows.append(decoding_row(paths, decoded, repeats))
        for name in from_files:
            rows.append(files_row(name, paths, sizes[name], batches[-1], repeats))
    platform = jax.default_backend()
    print(tables.inference(measure.write("inference", rows, platform=platform)))


if __name__ == "__main__":
    measure.command_line(run)
