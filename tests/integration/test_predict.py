"""Prediction with a trained run: the numbers of its evaluation, whatever lies in the folder."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxattn
from jaxattn import evaluate, train
from jaxattn.data import load
from jaxattn.data.sources.source_index import SourceImage, SourceIndex
from jaxattn.data.synthetic import dataset as synthetic
from jaxattn.data.tfds import writer

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """140 JPEGs of 90×120 pixels, twenty of each of HAM10000's classes; one is turned by EXIF."""
    folder = tmp_path_factory.mktemp("originals")
    drawn = synthetic.load(140, (90, 120))
    for i in range(140):
        image = Image.fromarray(drawn.records[i]["image"])
        exif = Image.Exif()
        if i == 3:
            image, exif[0x0112] = image.rotate(90, expand=True), 6
        image.save(folder / f"ISIC_{i:07d}.jpg", quality=92, exif=exif)
    return folder, [CLASSES[label] for label in drawn.labels[:140]]


@pytest.fixture(scope="module")
def make_run(originals, make_config, tmp_path_factory):
    """Prepares the originals, trains briefly and evaluates: ``(name, **evaluation) -> folder``."""
    source, labels = originals

    def make(name: str, size: int | None = None, seed: int = 0, **evaluation) -> Path:
        paths = sorted(source.glob("*.jpg"))
        rows = [
            SourceImage(p.stem, p.stem, dx, path=p) for p, dx in zip(paths, labels, strict=True)
        ]
        index = SourceIndex("drawn", "test", source, CLASSES, "", rows, {}, {})
        folder = tmp_path_factory.mktemp(name)
        writer.write(index, folder / "data", size=size)
        config = make_config()
        config.seed = seed
        config.dataset.update(name="prepared", data_dir=str(folder / "data"), image_size=32)
        config.split.update(test=0.5)
        config.evaluation.update(evaluation)
        config.epochs, config.steps_per_epoch = 1, 3
        assert train.train(config, folder / "run")
        evaluate.evaluate(folder / "run")
        return folder / "run"

    return make


@pytest.fixture(scope="module")
def run(make_run):
    return make_run("plain", logit_adjustment=0.5)


def evaluated(run):
    with (run / "evaluation/test_predictions.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("size", [None, 60])
def test_the_numbers_of_the_evaluation(run, make_run, originals, size):
    """From the original files, whether preparation kept their bytes or shrank them."""
    run = make_run("shrunk", size=size) if size else run
    rows = evaluated(run)
    loaded = jaxattn.load_run(run)
    paths = [originals[0] / f"{row['image_id']}.jpg" for row in rows]
    probabilities, maps = loaded.predict(paths)
    assert maps["attention"].shape == (len(rows), 2, 16, 16)
    decided = loaded.decide(probabilities)
    for row, values, decision in zip(rows, probabilities, decided, strict=True):
        assert [f"{value:.6g}" for value in values] == [row[f"p_{name}"] for name in CLASSES]
        assert row["prediction"] == CLASSES[decision]


def test_the_pixels_of_the_evaluation(run, originals):
    """What evaluation decodes of every image, and what prediction reads of its original."""
    loaded = jaxattn.load_run(run)
    dataset, _ = load.load_split(loaded.config)
    for i, image_id in enumerate(dataset.table["image_id"]):
        found = loaded.read(originals[0] / f"{image_id}.jpg")
        np.testing.assert_array_equal(found, dataset.records[i]["image"])
