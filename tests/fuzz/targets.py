"""Every reader of files from elsewhere, with a whole input of each.

A target writes a whole input into a folder and reads it; what it returns is compared.
"""

import csv
import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxattn import metrics, run_dir
from jaxattn.config import base
from jaxattn.convert import keras_files, torch
from jaxattn.data import images, splits, tables
from jaxattn.data.dataset import Dataset
from jaxattn.data.sources import attributes
from jaxattn.data.sources.source_index import SourceImage, SourceIndex
from jaxattn.data.tfds import reader, writer
from jaxattn.report import loading


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        make: Writes a whole input into a folder.
        read: Reads it.
        files: Patterns of the files to damage.
        checked: Whether the files have checksums, so that no change goes unnoticed.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    files: tuple[str, ...]
    checked: bool = False


NAMES = ("bcc", "mel", "nv")


def _dataset() -> Dataset:
    labels = np.arange(30, dtype=np.int32) % 3
    ids = np.array([f"I{i:02d}" for i in range(30)])
    table = {"image_id": ids, "lesion_id": np.array([f"L{i}" for i in range(30)]), "label": labels}
    return Dataset("fuzz", NAMES, table, [])


def _make_npz(folder: Path) -> None:
    rows = np.random.default_rng(0).permutation(30)
    np.savez(folder / "split.npz", test=rows[:5], val0=rows[5:10], train0=rows[10:])


def _read_npz(folder: Path) -> Any:
    return splits.make(_dataset(), "folds", file=str(folder / "split.npz"))


def _make_split(folder: Path) -> None:
    splits.write(folder / "split.csv", splits.make(_dataset(), test=0.3), _dataset())


def _picture(seed: int, shape: tuple[int, ...] = (12, 16, 3)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, shape, np.uint8)
    return Image.fromarray(pixels).resize((64, 48))


def _make_pictures(folder: Path) -> None:
    _picture(0).save(folder / "photo.jpg", quality=90)
    Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), 14)).save(folder / "mask.png")


def _read_pictures(folder: Path) -> Any:
    return images.encode_image(folder / "photo.jpg", 24), images.read_mask(folder / "mask.png")


def _make_prepared(folder: Path) -> None:
    source = folder.with_name(folder.name + "-source")
    source.mkdir()
    rows = []
    for i in range(6):
        _picture(i).save(source / f"I{i}.jpg", quality=90)
        Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), ((20, 20), (28, 28)))).save(
            source / f"I{i}.png"
        )
        rows.append(
            SourceImage(
                image_id=f"I{i}",
                lesion_id=f"L{i}",
                dx=NAMES[i % 3],
                dx_type="histo",
                age=40.0,
                sex="male",
                localization="back",
                path=source / f"I{i}.jpg",
                mask=source / f"I{i}.png",
            )
        )
    index = SourceIndex(
        name="fuzz", class_names=NAMES, citation="", source=source, layout="", images=rows,
        problems={}, notes={},
    )  # fmt: skip
    writer.write(index, folder / "data")


def _read_prepared(folder: Path) -> Any:
    dataset = reader.load(folder / "data", 16)
    return dataset.name, dataset.class_names, dict(dataset.table), list(dataset.records)


def _make_run(folder: Path) -> None:
    (folder / "evaluation").mkdir()
    config = json.loads(base().to_json())
    run_dir.write_json(folder / "config.json", config)
    metadata = {"age": [50.5, 12.25], "localization": ["back", "face"]}
    classes = {"dataset": "fuzz", "training_images": dict.fromkeys(NAMES, 7), "metadata": metadata}
    run_dir.write_json(folder / "classes.json", classes)
    rows = [{"kind": "train", "step": i, "loss": 1 / i, "accuracy": 0.5} for i in (1, 2, 3)]
    rows.append({"kind": "validation", "step": 3, "loss": 2.0, "balanced_accuracy": 0.4})
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = np.arange(12) % 3
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    evaluation = {
        "split": "test",
        "checkpoint": "best",
        "step": 3,
        "dataset": "fuzz",
        "images": 12,
        "lesions": 12,
        "leak": "koefler",
        "measured_leak": {"lesion": 0.9, "image": 0.5},
        "logit_adjustment": 0.5,
        "metrics": metrics.classification(labels, probabilities, NAMES),
        "target": {"class": "mel", **metrics.detection(labels == 1, probabilities[:, 1])},
        "jaccard": {"images": 3, "mean": {"attention": 0.5}},
        "device": "a device",
        "versions": {"jax": "1"},
    }
    run_dir.write_json(folder / "evaluation" / "test.json", evaluation)
    with (folder / "evaluation" / "test_predictions.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["image_id", "lesion_id", "label", *(f"p_{name}" for name in NAMES)])
        for i, row in enumerate(probabilities):
            out.writerow([f"I{i}", f"L{i}", NAMES[labels[i]], *row])
    rng = np.random.default_rng(0)
    np.savez_compressed(
        folder / "evaluation" / "test_cases.npz",
        image_id=np.array(["I0", "I1"]),
        image=rng.integers(0, 255, (2, 8, 8, 3), np.uint8),
        mask=np.ones((2, 8, 8), np.uint8),
        label=labels[:2],
        prediction=labels[:2],
        probability=np.float32([0.5, 0.6]),
        **{"map/attention": rng.random((2, 1, 4, 4), np.float32)},
    )
    (folder / "split.csv").write_text("image_id,lesion_id,split\na,l,train\nb,m,test\n")


def _read_run(folder: Path) -> Any:
    run = loading.load(folder)
    parts = vars(run) | {"folder": "", "config": run.config.to_dict()}
    facts = run_dir.read_classes(folder), run_dir.read_vocabulary(folder)
    return parts, run_dir.read_config(folder).to_dict(), *facts


LAYERS = [
    keras_files.Stored(
        f"{kind}_{i}",
        [np.random.default_rng(i).random(shape, np.float32) for shape in shapes],
        kind,
        names,
    )
    for i, (kind, shapes, names) in enumerate(
        [
            ("conv2d", [(3, 3, 3, 8), (8,)], ("kernel", "bias")),
            ("batch_normalization", [(8,)] * 4, ("gamma", "beta", "mean", "variance")),
            ("conv2d", [(3, 3, 8, 8), (8,)], ("kernel", "bias")),
            ("dense", [(8, 5), (5,)], ("kernel", "bias")),
        ]
    )
]


def _make_keras(folder: Path) -> None:
    for name in ("legacy.h5", "new.weights.h5"):
        keras_files.write(folder / name, LAYERS)
    content = (folder / "new.weights.h5").read_bytes()
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("config.json", '{"class_name": "Functional"}')
        archive.writestr("model.weights.h5", content)
    keras_files.write(folder / "part_00000.weights.h5", LAYERS[:2])
    shards = {f"/layers/{layer.name}/vars": "part_00000.weights.h5" for layer in LAYERS[:2]}
    (folder / "shards.weights.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def _read_keras(name: str) -> Callable[[Path], Any]:
    return lambda folder: [tuple(layer) for layer in keras_files.read(folder / name)]


STATE = {
    "conv1.weight": np.random.default_rng(0).random((8, 3, 3, 3), np.float32),
    "bn1.running_mean": np.zeros(8, np.float32),
    "fc.weight": np.ones((5, 8), np.float32),
}


def _make_safetensors(folder: Path) -> None:
    import safetensors.numpy

    safetensors.numpy.save_file(STATE, folder / "w.safetensors")


def _make_torch(folder: Path) -> None:
    import torch as pytorch

    state = {"model": {name: pytorch.from_numpy(array) for name, array in STATE.items()}}
    pytorch.save(state, folder / "w.pth")
    pytorch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)


def _make_table(folder: Path) -> None:
    rows = [{"image_id": f"I{i}", "dx": NAMES[i % 3], "age": 10 * i} for i in range(20)]
    buffer = io.StringIO()
    out = csv.DictWriter(buffer, ["image_id", "dx", "age"])
    out.writeheader()
    out.writerows(rows)
    (folder / "table.csv").write_text(buffer.getvalue())


def _read_table(folder: Path) -> Any:
    rows = tables.read_table(folder / "table.csv", ("image_id", "dx", "age"))
    return [
        (row.text("image_id"), row.choice("dx", NAMES), row.number("age", 0, 500)) for row in rows
    ]


def _make_superpixels(folder: Path) -> None:
    numbers = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64) // 256
    colours = np.stack([numbers % 256, numbers // 256, numbers * 0], -1).astype(np.uint8)
    Image.fromarray(colours).save(folder / "superpixels.png")
    values = {name: [0, 1] * 10 for name in attributes.NAMES}
    (folder / "features.json").write_text(json.dumps(values))


def _read_superpixels(folder: Path) -> Any:
    numbers = attributes.read_superpixels(folder / "superpixels.png")
    return numbers, attributes._read_annotations(folder / "features.json", folder, 12)


def _reads(module: Any, *names: str) -> Callable[[Path], Any]:
    return lambda folder: [module.read(folder / name) for name in names]


TARGETS: dict[str, Target] = {
    "split archive": Target(_make_npz, _read_npz, ("split.npz",), checked=True),
    "split table": Target(
        _make_split, lambda folder: splits.read(folder / "split.csv", _dataset()), ("split.csv",)
    ),
    "table": Target(_make_table, _read_table, ("table.csv",)),
    "pictures": Target(_make_pictures, _read_pictures, ("photo.jpg", "mask.png")),
    "superpixels": Target(_make_superpixels, _read_superpixels, ("superpixels.png", "*.json")),
    "prepared description": Target(
        _make_prepared,
        _read_prepared,
        ("data/dataset_info.json", "data/features.json", "data/*.txt", "data/report.json"),
    ),
    "prepared index": Target(_make_prepared, _read_prepared, ("data/index.csv",)),
    "prepared records": Target(
        _make_prepared, _read_prepared, ("data/*array_record*",), checked=True
    ),
    "run": Target(
        _make_run,
        _read_run,
        ("*.json", "log.jsonl", "split.csv", "evaluation/test.json", "evaluation/*.csv"),
    ),
    "cases": Target(_make_run, _read_run, ("evaluation/*.npz",), checked=True),
    "Keras, legacy": Target(_make_keras, _read_keras("legacy.h5"), ("legacy.h5",)),
    "Keras, .weights.h5": Target(_make_keras, _read_keras("new.weights.h5"), ("new.weights.h5",)),
    "Keras, .keras": Target(
        _make_keras, _read_keras("model.keras"), ("model.keras",), checked=True
    ),
    "Keras, shards": Target(
        _make_keras, _read_keras("shards.weights.json"), ("shards.weights.json", "part_*")
    ),
    "safetensors": Target(_make_safetensors, _reads(torch, "w.safetensors"), ("w.safetensors",)),
    "PyTorch": Target(_make_torch, _reads(torch, "w.pth"), ("w.pth",), checked=True),
    "PyTorch, old": Target(_make_torch, _reads(torch, "old.pth"), ("old.pth",)),
}


def digest(value: Any) -> Any:
    """What can be compared of what a reader returned."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return digest(vars(value))
    if isinstance(value, dict):
        return [(name, digest(each)) for name, each in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [digest(each) for each in value]
    return value.tobytes() if isinstance(value, np.generic) else repr(value)
