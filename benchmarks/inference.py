"""Images per second of prediction: the model alone, decoding alone, and from files to CSV.

    python -m benchmarks.inference [--tensorflow_python=PATH]

**Model.** Forward passes of the published models, at batch 1 (a latency) and 64, in turn: ours from
bytes to probabilities and maps, the peers from normalised images to logits. Keras runs compiled by
TensorFlow and by JAX, PyTorch in channels_last and inference mode, ONNX Runtime a network that
PyTorch exported. A peer whose kernels have another number of values than ours is marked ≠.

**Decoding.** The same JPEGs, on one thread: decoded whole and resized, and as training, evaluation
and prediction do it: decoded at 1/2, 1/4 or 1/8 if that is no smaller than needed (scaled DCT), and
the rest resized. The difference of their pixels is in grey levels.

**Files.** Prediction from JPEG files to rows of CSV, against its parts: decoding with all threads,
and the model on a batch in place. On a CPU all three use the same cores, so that reaching 90% of
the slower part is possible only where the other takes little; on an accelerator they overlap.

The images are those of ``input_pipeline``: synthetic ones with sensor noise.
"""

import contextlib
import io
import itertools
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks import input_pipeline, measure, ours, tables
from benchmarks.process import Process, Timed, Unavailable
from benchmarks.train_step import CLASSES, Case
from jaxattn import predict
from jaxattn.data import images as decoding
from jaxattn.errors import invalid
from jaxattn.submissions import FORMATS

Row = dict[str, Any]


def model_row(case: Case, pythons: dict[str, str], repeats: int) -> Row:
    """Times the forward pass of a model in all ways, in turn.

    Args:
        case: The model, batch and size.
        pythons: Interpreters by way.
        repeats: Number of measurements of each way.

    Raises:
        InputError: Ours does not run.
    """
    question = {"model": case.model, "classes": CLASSES, **case.inputs()}
    ways: dict[str, Timed] = {}
    kernels: dict[str, int] = {}
    skipped: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for way, python in pythons.items():
            env = {"KERAS_BACKEND": way.removeprefix("keras_")} if "keras" in way else {}
            try:
                process = stack.enter_context(Process(python, "benchmarks.peers.inference", **env))
                kernels[way] = process.ask("prepare", way=way, **question)["kernels"]
                ways[way] = Timed(process)
            except Unavailable as reason:
                if way == "ours":
                    raise invalid(str(case), "a model that runs", reason) from reason
                skipped[way] = str(reason)
        took = measure.seconds(ways, repeats=repeats, least=0.3)
    mine = took["ours"]["median"]
    return {
        "measured": "model",
        **case._asdict(),
        "seconds": took,
        "speedup": {way: each["median"] / mine for way, each in took.items()},
        "differs": [way for way, count in kernels.items() if count != kernels["ours"]],
        "skipped": skipped,
    }


def decoding_row(name: str, paths: Sequence[Path], size: int, repeats: int) -> Row:
    """Times decoding on one thread, whole and scaled.

    Args:
        name: Name of the images.
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

    took = measure.seconds(
        {
            each.__name__: lambda each=each: [each(data) for data in content]
            for each in (whole, scaled)
        },
        repeats=repeats,
    )
    apart = [np.abs(whole(data).astype(int) - scaled(data)).mean() for data in content]
    rates = {way: len(paths) / each["median"] for way, each in took.items()}
    return {
        "measured": "decoding",
        "images": name,
        "size": size,
        "images_per_second": rates,
        "speedup": rates["scaled"] / rates["whole"],
        "difference": float(np.mean(apart)),
    }


def files_row(model: str, paths: Sequence[Path], size: int, batch: int, repeats: int) -> Row:
    """Times prediction from files to CSV, and its parts.

    Args:
        model: A model of `tables.MODELS`, or ``small``.
        paths: JPEG files, at least a batch.
        size: Height and width of the network's input.
        batch: Images in a batch.
        repeats: Number of measurements of each way.
    """
    config = ours.small(size, 24, batch) if model == "small" else None
    config = config or ours.published(model, batch, "float32", size)
    config.evaluation.batch_size = batch
    run = ours.untrained(config, CLASSES)
    form = FORMATS["csv"](run.class_names)
    pixels = {"image": jax.device_put(np.stack([run.read(path) for path in paths[:batch]]))}

    def files() -> None:
        predict.write(lambda text: None, [run], paths, form)

    def decode() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(run.read, paths):
                pass

    def forward() -> Any:
        for _ in range(len(paths) // batch):
            found = run._step(run.variables, {}, pixels)
        return found

    took = measure.seconds({"files": files, "decoding": decode, "model": forward}, repeats=repeats)
    counts = {"model": len(paths) // batch * batch}
    rates = {way: counts.get(way, len(paths)) / each["median"] for way, each in took.items()}
    share = rates["files"] / min(rates["decoding"], rates["model"])
    facts = {"measured": "files", "model": model, "batch": batch, "size": size}
    return {**facts, "images_per_second": rates, "share": share}


def run(
    models: tuple[str, ...] = ("resnet50", "resnet50_sa", "irv2", "irv2_sa"),
    batches: tuple[int, ...] = (1, 64),
    peers: tuple[str, ...] = ("keras_tensorflow", "keras_jax", "torch", "onnx"),
    repeats: int = 3,
    size: int = 0,
    from_files: tuple[str, ...] = ("small", "resnet50_sa"),
    images: int = 256,
    drawn_height: int = 450,
    small: int = 256,
    decoded: int = 224,
    tensorflow_python: str = sys.executable,
    torch_python: str = sys.executable,
) -> None:
    """Measures everything and writes the result.

    Args:
        models: Names of models, with and without _sa.
        batches: Batch sizes of the model alone; the last one is that of prediction from files.
        peers: Of keras_tensorflow, keras_jax, torch and onnx.
        repeats: Number of measurements of each way.
        size: Height and width of the models' input; 0 for the published size.
        from_files: Models to predict from files with; small for the small attention CNN at 64×64.
        images: Number of files.
        drawn_height: Height of the images; they are 4/3 as wide.
        small: Height and width of the small images.
        decoded: Height and width to decode to.
        tensorflow_python: An interpreter with TensorFlow and Keras.
        torch_python: An interpreter with PyTorch, torchvision, timm and ONNX Runtime.
    """
    interpreters = {"keras_tensorflow": tensorflow_python, "torch": torch_python}
    interpreters |= {"onnx": torch_python}
    pythons = {name: interpreters.get(name, sys.executable) for name in ("ours", *peers)}
    rows = []
    for name, batch in itertools.product(models, batches):
        case = Case(name, batch, "float32", size or ours.image_size(name))
        rows.append(model_row(case, pythons, repeats))
    with tempfile.TemporaryDirectory() as temporary:
        shape = (drawn_height, drawn_height * 4 // 3)
        folders = input_pipeline.drawn(Path(temporary), images, shape, small)
        for name, folder in folders.items():
            rows.append(decoding_row(name, sorted(folder.glob("*.jpg")), decoded, repeats))
        paths = sorted(next(iter(folders.values())).glob("*.jpg"))
        for name in from_files:
            side = 64 if name == "small" else size or ours.image_size(name)
            rows.append(files_row(name, paths, side, batches[-1], repeats))
    platform = jax.default_backend()
    print(tables.inference(measure.write("inference", rows, platform=platform)))


if __name__ == "__main__":
    measure.command_line(run)
