"""Published counts, on the real HAM10000 and ISIC 2017 in the folder ``JAXATTN_DATA``."""

import csv
import dataclasses
import io
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxattn import evaluate, losses, predict, train
from jaxattn.data import classes, duplicates, leaks, samplers, splits
from jaxattn.data.dataset import COLUMNS, Dataset
from jaxattn.data.sources import attributes, ham10000, isic
from jaxattn.data.tfds import reader, writer

KOEFLER = ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df")


def real(name):
    """A path in the folder of real data; skips the test if there is none."""
    path = Path(os.environ.get("JAXATTN_DATA", "nowhere")) / name
    if not path.exists():
        pytest.skip(f"JAXATTN_DATA does not name a folder with {name}")
    return path


def unpacked(name, file, folder):
    """The folder of the first file called like this in NAME/ or NAME.tar."""
    root = Path(os.environ.get("JAXATTN_DATA", "nowhere")) / name
    if not root.is_dir():
        root = folder
        with tarfile.open(real(f"{name}.tar")) as tar:
            tar.extractall(folder, filter="data")
    return next(root.rglob(file)).parent


@pytest.fixture(scope="module")
def ham_index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ham10000")
    return ham10000.read(unpacked("ham10000", "HAM10000_metadata*", folder))


@pytest.fixture(scope="module")
def ham(ham_index):
    """HAM10000 without its pixels."""
    found = ham_index.images
    columns = {name: [getattr(i, name) for i in found] for name in COLUMNS if name != "label"}
    columns["label"] = [ham10000.CLASS_NAMES.index(i.dx) for i in found]
    return Dataset(
        name="ham10000",
        class_names=ham10000.CLASS_NAMES,
        table={name: np.array(values, COLUMNS[name]) for name, values in columns.items()},
        records=range(len(found)),
    )


def test_diagnosis_guided_weighting_as_executed_by_gessert(ham):
    """The mean factor of each class if every image counts, as their code has it."""
    factors = losses.diagnosis_factors(
        ham.labels, ham.table["dx_type"], ham.class_names, ham.class_names
    )
    means = {n: factors[ham.labels == c].mean() for c, n in enumerate(ham.class_names)}
    published = {
        "mel": 4.0,
        "bcc": 4.0,
        "akiec": 4.0,
        "bkl": 3.2,
        "nv": 2.7,
        "df": 2.4,
        "vasc": 2.4,
    }
    assert means == pytest.approx(published, abs=0.051)


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_gesserts_published_folds(ham, fold):
    """The authors' indices, into images sorted by name, cut every class in quarters, by lesion."""
    split = splits.make(ham, "folds", fold=fold, file=str(real("gessert2019_ham_split.npz")))
    lesions = [set(ham.table["lesion_id"][rows].tolist()) for rows in split.values()]
    assert len(set.union(*lesions)) == sum(map(len, lesions)) == 7470  # none is in two parts
    sizes = {part: len(rows) for part, rows in split.items()}
    assert sizes == {
        "train": (4993, 4996, 5019)[fold],
        "validation": (2511, 2508, 2485)[fold],
        "test": 2511,
    }
    whole = np.bincount(ham.labels)
    for part, quarters in (("test", 1), ("validation", 1), ("train", 2)):
        held = np.bincount(ham.labels[split[part]], minlength=7)
        np.testing.assert_allclose(held, quarters * whole / 4, rtol=0, atol=5)


@pytest.mark.parametrize(
    ("test", "counts"),
    [
        (0.15, [23, 26, 66, 6, 34, 663, 10]),
        (0.20, [30, 35, 88, 8, 46, 883, 13]),
        (0.30, [45, 53, 132, 12, 69, 1325, 19]),
    ],
)
def test_dattas_test_parts(ham, test, counts):
    """The test part of each size has the counts that the authors' notebooks print."""
    split = splits.make(ham, "datta", test=test)
    assert np.bincount(ham.labels[split["test"]]).tolist() == counts


def test_koeflers_copies(ham):
    """Every count that Köfler 2023 prints, and the class weights of the training part."""
    copied = leaks.copies(classes.select(ham, KOEFLER), "koefler")
    assert np.bincount(copied.labels).tolist() == [6705, 6678, 6594, 3084, 1962, 852, 690]
    split = splits.make(copied, leak="koefler")
    assert [len(split[part]) for part in splits.PARTS] == [17798, 8767, 8767]
    weights = losses.class_weights(copied.labels[split["train"]], KOEFLER, exponent=1.0)
    np.testing.assert_allclose(weights, [0.57, 0.57, 0.58, 1.23, 1.93, 4.45, 5.5], atol=0.006)
    measured = leaks.measure(copied, split)
    assert 0.6 < measured["image"] < measured["lesion"] < 0.95


def test_samplers(ham):
    """The class counts of the data set's paper, as each sampler changes them."""
    labels = ham.labels

    def counts(name):
        return np.bincount(labels[samplers.SAMPLERS[name](labels, samplers.Draw(0, 0))]).tolist()

    assert counts("none") == [327, 514, 1099, 115, 1113, 6705, 142]
    assert counts("oversample") == [6705] * 7
    assert counts("balanced_batches") == [1431] * 5 + [1430] * 2
    sampler = samplers.Sampler(np.arange(len(labels)), labels, 45, 0, "balanced_batches")
    for step in (0, 1, 100, sampler.steps_per_pass - 1, sampler.steps_per_pass):
        assert sorted(np.bincount(labels[sampler.batch(step)]).tolist()) == [6, 6, 6, 6, 7, 7, 7]


def test_preparing_ham10000(ham_index, tmp_path):
    start = time.monotonic()
    report = writer.write(ham_index, tmp_path / "out")
    assert time.monotonic() - start < 180  # the promise for two cores
    # The counts that its authors published.
    published = {"nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327}
    assert report["classes"] == {**published, "vasc": 142, "df": 115}
    assert (report["images"], report["lesions"], report["masks"]) == (10015, 7470, 10015)
    assert report["problems"] == {}
    dataset = reader.load(tmp_path / "out", 64)
    lesions, images = np.unique(dataset.table["lesion_id"], return_counts=True)
    assert len(lesions) == 7470
    assert np.sum(images == 1) == 5514
    # A lesion lies within its frame: masks read through an inverted palette would fill it.
    area = [dataset.records[i]["mask"].mean() for i in range(0, 10015, 50)]
    assert 0.1 < np.median(area) < 0.5


def test_predicting_a_folder_of_ham10000_gives_the_numbers_of_the_evaluation(
    ham_index, tiny_config, command, tmp_path, monkeypatch
):
    """Forty images of each class; their files are predicted by name, in another order."""
    monkeypatch.setattr(predict.runtime, "setup", lambda cpu_devices: None)
    chosen = [
        image
        for name in ham10000.CLASS_NAMES
        for image in [i for i in ham_index.images if i.dx == name][:40]
    ]
    writer.write(dataclasses.replace(ham_index, images=chosen), tmp_path / "data")
    (tmp_path / "images").mkdir()
    for image in chosen:
        (tmp_path / "images" / image.path.name).symlink_to(image.path)
    tiny_config.dataset.update(name="prepared", data_dir=str(tmp_path / "data"))
    tiny_config.split.update(test=0.5)
    tiny_config.epochs = 1
    assert train.train(tiny_config, tmp_path / "run")
    evaluate.evaluate(tmp_path / "run")
    out = tmp_path / "out.csv"
    status, _, err = command(
        predict, f"--run={tmp_path / 'run'}", f"--out={out}", str(tmp_path / "images")
    )
    assert status == 0, err
    with out.open(newline="") as file:
        found = {row["image_id"]: row for row in csv.DictReader(file)}
    assert len(found) == 280
    with (tmp_path / "run/evaluation/test_predictions.csv").open(newline="") as file:
        evaluated = list(csv.DictReader(file))
    assert len(evaluated) > 100
    for row in evaluated:
        for column in ("prediction", *(f"p_{name}" for name in ham10000.CLASS_NAMES)):
            assert found[row["image_id"]][column] == row[column]


def test_isic2017(tmp_path):
    """The published counts of each part (Codella et al. 2017; Datta et al. 2021, notebooks)."""
    source = unpacked("isic2017", "ISIC-2017_Training_Part3_GroundTruth.csv", tmp_path)
    index = isic.read(source, 2017)
    expected = {
        "train": {"melanoma": 374, "seborrheic_keratosis": 254, "nevus": 1372},
        "validation": {"melanoma": 30, "seborrheic_keratosis": 42, "nevus": 78},
        "test": {"melanoma": 117, "seborrheic_keratosis": 90, "nevus": 393},
    }
    for part, counts in expected.items():
        found = [image.dx for image in index.images if image.part == part]
        assert {name: found.count(name) for name in index.class_names} == counts
    assert sum(image.has_mask for image in index.images) == 2150
    assert sum(image.has_attributes for image in index.images) == 1800
    assert index.problems == {}
    first = next(image for image in index.images if image.image_id == "ISIC_0000000")
    data = io.BytesIO(attributes.encode(first.attributes, first.path, (256, 256), (256, 256)))
    union = np.zeros((256, 256), bool)
    for path in first.attributes.values():
        union |= np.asarray(Image.open(path)) > 0
    np.testing.assert_array_equal(np.asarray(Image.open(data)) > 0, union)
    assert_known_duplicates(index, tmp_path)


def assert_known_duplicates(index, tmp_path):
    """Four photographs are in two parts each under two ids, byte for byte."""
    pairs = {
        ("ISIC_0012970", "ISIC_0012127"),
        ("ISIC_0012175", "ISIC_0015982"),
        ("ISIC_0012271", "ISIC_0016018"),
        ("ISIC_0012221", "ISIC_0016002"),
    }
    path_of = {image.image_id: image.path for image in index.images}
    assert all(path_of[a].read_bytes() == path_of[b].read_bytes() for a, b in pairs)
    writer.write(index, tmp_path / "out")
    dataset = reader.load(tmp_path / "out")
    split = splits.make(dataset, "official")
    found = set()
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        same, _ = duplicates.pairs(dataset, split[one], split[other])
        ids = dataset.table["image_id"]
        found |= set(zip(ids[same.first].tolist(), ids[same.second].tolist(), strict=True))
    assert found == pairs
    counts = duplicates.count(dataset, split)
    exact = {parts: row["same_pixels"] for parts, row in counts.items()}
    assert exact == {"train, validation": 1, "train, test": 2, "validation, test": 1}
    assert leaks.measure(dataset, split)["same_pixels"] == 2 / 600
    left = splits.make(dataset, "official", duplicates="drop")
    assert duplicates.count(dataset, left) == {}
    assert len(left["test"]) == 600
