"""A run evaluated on another data set: beside its own results, with and without what it knows."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from jaxattn import evaluate, report, train
from jaxattn.data.sources import image_folder
from jaxattn.data.tfds import writer
from jaxattn.errors import InputError
from jaxattn.evaluation import external


def picture(seed):
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (16, 16, 3), np.uint8)
    return Image.fromarray(noise).resize((40, 40), Image.Resampling.NEAREST)


def prepare(folder, images):
    """Prepares images, ``{CLASS: {NAME: picture}}``, as a folder for each class."""
    for name, pictures in images.items():
        (folder / name).mkdir(parents=True)
        for image_id, image in pictures.items():
            image.save(folder / name / f"{image_id}.png")
    out = folder.with_name(f"{folder.name}_prepared")
    writer.write(image_folder.read(folder), out)
    return out


@pytest.fixture(scope="module")
def run(make_config, tmp_path_factory):
    """A run on 60 images of three classes, and the folder of its data."""
    folder = tmp_path_factory.mktemp("external")
    images = {
        name: {f"ISIC_{20 * i + j:07}": picture(20 * i + j) for j in range(20)}
        for i, name in enumerate(("mel", "nv", "vasc"))
    }
    config = make_config()
    data = prepare(folder / "own", images)
    config.dataset.update(name="prepared", data_dir=str(data))
    config.epochs, config.steps_per_epoch, config.evaluation.resamples = 1, 2, 50
    config.split.update(test=0.2, validation=0.2)
    assert train.train(config, folder / "run")
    evaluate.evaluate(folder / "run")
    return folder / "run"


def parts(run):
    with (run / "split.csv").open() as file:
        return {row["image_id"]: row["split"] for row in csv.DictReader(file)}


def test_another_data_set(run, tmp_path):
    part = parts(run)
    trained = [int(name[5:]) for name in part if part[name] == "train" and name < "ISIC_0000020"]
    tested = [int(name[5:]) for name in part if part[name] == "test" and name >= "ISIC_0000040"]
    other = {
        "melanoma": {f"A_{i}": picture(1000 + i) for i in range(6)},
        "mole": {f"B_{i}": picture(2000 + i) for i in range(6)},
        "angioma": {f"C_{i}": picture(3000 + i) for i in range(3)},
        "wart": {"D_0": picture(4000)},
    }
    other["melanoma"]["A_0"] = picture(trained[0])  # under another name
    other["melanoma"]["A_1"] = picture(trained[1]).transpose(Image.Transpose.ROTATE_90)
    other["angioma"]["C_0"] = picture(tested[0])
    data = prepare(tmp_path / "other", other)
    classes = tmp_path / "classes.json"
    mapping = {"melanoma": "mel", "mole": "nv", "angioma": "vasc", "wart": None}
    classes.write_text(json.dumps({"data": mapping}))
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    result = external.evaluate_on(run, str(data), str(classes))
    assert {path: path.read_bytes() for path in before} == before
    assert result == json.loads((run / "evaluation" / "other.json").read_text())
    assert (result["images"], result["left_out"]) == (15, {"wart": 1})
    kinds = {"id": 0, "lesion": 0, "same_pixels": 1, "near_duplicate": 2, "any": 2}
    assert result["known"]["trained"] == kinds
    assert result["known"]["own"] == kinds | {"same_pixels": 2, "near_duplicate": 3, "any": 3}
    with (run / "evaluation" / "other_predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["image_id"] for r in rows if r["trained"] == "1"] == ["A_0", "A_1"]

    def accuracy(kept):
        hits = [r["label"] == r["prediction"] for r in rows if kept(r)]
        return pytest.approx(np.mean(hits)), len(hits)

    for place, kept in (
        (result, lambda r: True),
        (result["without_trained"], lambda r: r["trained"] == "0"),
        (result["without_own"], lambda r: r["own"] == "0"),
    ):
        assert (place["metrics"]["accuracy"], place["metrics"]["n"]) == accuracy(kept)
    page = report.write(run).read_text()
    assert "Other data sets" in page
    assert "2 of 15 images training or validation knew" in page


def test_its_own_data_set_under_the_same_classes_is_no_other_one(run, tmp_path):
    own = run.parent / "own_prepared"
    assert not external.is_other(run, str(own))
    images = {name: {f"{name}_{i}": picture(900 + 7 * i + j) for i in range(3)}
              for j, name in enumerate(("mel", "nv"))}  # fmt: skip
    data = prepare(tmp_path / "test", images)
    assert external.is_other(run, str(data))
    result = external.evaluate_on(run, str(data), out=tmp_path / "results")
    assert result["split"] == "test_data"  # never a name of the run's own evaluations
    assert (tmp_path / "results" / "evaluation" / "test_data.json").is_file()
    with pytest.raises(InputError, match=r"expected a folder of python -m jaxattn\.prepare"):
        external.evaluate_on(run, str(tmp_path), "isic2019_to_ham10000")
