"""Prediction with a trained run: the numbers of its evaluation, whatever lies in the folder."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

import jaxattn
from jaxattn import evaluate, overlays, predict, train
from jaxattn.data import load
from jaxattn.data.sources.source_index import SourceImage, SourceIndex
from jaxattn.data.synthetic import dataset as synthetic
from jaxattn.data.tfds import writer

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


@pytest.fixture(autouse=True)
def setup_once(monkeypatch):
    """Other tests in this process have computed already: its devices are made."""
    monkeypatch.setattr(predict.runtime, "setup", lambda cpu_devices: None)


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

    def make(name, size=None, seed=0, image_size=32, **evaluation) -> Path:
        paths = sorted(source.glob("*.jpg"))
        rows = [
            SourceImage(p.stem, p.stem, dx, path=p) for p, dx in zip(paths, labels, strict=True)
        ]
        index = SourceIndex("drawn", "test", source, CLASSES, "", rows, {}, {})
        folder = tmp_path_factory.mktemp(name)
        writer.write(index, folder / "data", size=size)
        config = make_config()
        config.seed = seed
        config.dataset.update(name="prepared", data_dir=str(folder / "data"))
        config.dataset.image_size = image_size
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
        assert [f"{value:.9g}" for value in values] == [row[f"p_{name}"] for name in CLASSES]
        assert row["prediction"] == CLASSES[decision]


def test_the_pixels_of_the_evaluation(run, originals):
    """What evaluation decodes of every image, and what prediction reads of its original."""
    loaded = jaxattn.load_run(run)
    dataset, _ = load.load_split(loaded.config)
    for i, image_id in enumerate(dataset.table["image_id"]):
        found = loaded.read(originals[0] / f"{image_id}.jpg")
        np.testing.assert_array_equal(found, dataset.records[i]["image"])


def predicted(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_gives_the_numbers_of_the_evaluation(run, originals, command, tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("old")
    status, text, err = command(predict, f"--run={run}", f"--out={out}", str(originals[0]))
    assert (status, text) == (0, ""), err
    assert err.splitlines()[-1] == "140 images: 140 classified"
    assert list(tmp_path.iterdir()) == [out]
    found = {row["image_id"]: row for row in predicted(out)}
    assert list(found) == [f"ISIC_{i:07d}" for i in range(140)]
    for row in evaluated(run):
        for column in ("prediction", *(f"p_{name}" for name in CLASSES)):
            assert found[row["image_id"]][column] == row[column]


def odd_files(folder, good):
    """Writes files of every kind; returns what their error says, by name, '' for none."""
    image = Image.open(good)
    (folder / "deep/er").mkdir(parents=True)
    image.save(folder / "deep/er/Läsion zwei.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.quantize(64).save(folder / "palette.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "16.png")
    image.save(folder / "animated.gif", save_all=True, append_images=[image.rotate(180)])
    image.save(folder / "a png.jpg", "PNG")
    image.resize((5472, 3648)).save(folder / "large.jpg")
    (folder / "link.jpg").symlink_to(good)
    (folder / "lost.jpg").symlink_to(folder / "nowhere")
    (folder / "empty.jpg").touch()
    (folder / "half.jpg").write_bytes(good.read_bytes()[:900])
    (folder / "text.jpg").write_text("no image")
    for name in ("Thumbs.db", "._ISIC_0000001.jpg", "ATTRIBUTION.txt"):
        (folder / name).write_bytes(b"no image")
    names = ["16.png", "a png.jpg", "animated.gif", "cmyk.jpg", "deep/er/Läsion zwei.png"]
    names += ["large.jpg", "link.jpg", "palette.png"]
    return dict.fromkeys(names, "") | {
        "empty.jpg": "an empty file",
        "half.jpg": "cannot be decoded",
        "lost.jpg": "no such file",
        "text.jpg": "an unknown format",
    }


def test_a_folder_of_odd_files(run, originals, command, tmp_path):
    folder, out = tmp_path / "odd", tmp_path / "out.csv"
    folder.mkdir()
    good = originals[0] / "ISIC_0000000.jpg"
    expected = odd_files(folder, good)
    explicit = folder / "ATTRIBUTION.txt"
    status, _, err = command(predict, f"--run={run}", f"--out={out}", str(folder), str(explicit))
    assert status == predict.UNREADABLE
    last = "13 images: 8 classified, 5 could not be read; 2 other files skipped"
    assert err.splitlines()[-1] == last
    rows = {str(Path(row["path"]).relative_to(folder)): row for row in predicted(out)}
    assert rows.keys() == expected.keys() | {"ATTRIBUTION.txt"}
    for name, error in (expected | {"ATTRIBUTION.txt": "an unknown format"}).items():
        assert error in rows[name]["error"]
        assert bool(error) == bool(rows[name]["error"])
        assert bool(error) == (rows[name]["prediction"] == "" == rows[name]["p_nv"])
    loaded = jaxattn.load_run(run)
    alone = loaded.read(good).astype(int)
    for name in expected.keys() - {"16.png"}:  # which is grey
        if not expected[name]:
            assert np.abs(loaded.read(folder / name) - alone).mean() < 6


def test_nothing_to_classify(run, command, tmp_path):
    (tmp_path / "x.txt").touch()
    assert command(predict, f"--run={run}")[::2] == (2, "error: PATHS: expected images, got none\n")
    status, _, err = command(predict, f"--run={run}", str(tmp_path))
    assert (status, err) == (2, "error: PATHS: expected images, got none (1 other files)\n")
    status, text, _ = command(predict, f"--run={run}", "--format=jsonl", str(tmp_path / "x.txt"))
    assert status == predict.UNREADABLE
    assert "an empty file" in json.loads(text)["error"]


@pytest.fixture(params=[2018, 2019])
def submission(request, run, originals, command, tmp_path):
    """The file, its columns and rows, the true columns, and our evaluation's balanced accuracy."""
    labels = {row["image_id"]: row["label"] for row in evaluated(run)}
    out = tmp_path / "submission.csv"
    paths = [str(originals[0] / f"{image}.jpg") for image in labels]
    arguments = (f"--run={run}", f"--format=isic{request.param}", f"--out={out}")
    assert command(predict, *arguments, *paths)[0] == 0
    rows = predicted(out)
    names = list(rows[0])[1:]
    columns = dict(zip(CLASSES, ("AKIEC", "BCC", "BKL", "DF", "MEL", "NV", "VASC"), strict=True))
    columns["akiec"] = "AKIEC" if request.param == 2018 else "AK"
    truth = [columns[labels[row["image"]]] for row in rows]
    metrics = json.loads((run / "evaluation/test.json").read_text())["metrics"]
    return out, names, rows, truth, metrics["balanced_accuracy"]


def test_the_official_formats(submission):
    """Their balanced accuracy is that of our evaluation, also with logit adjustment."""
    _, names, rows, truth, wanted = submission
    values = np.array([[float(row[name]) for name in names] for row in rows])
    np.testing.assert_allclose(values.sum(1), 1, rtol=1e-5)
    decided = [names[i] for i in values.argmax(1)]
    assert balanced_accuracy_score(truth, decided) == pytest.approx(wanted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("submission", [2018], indirect=True)
def test_the_fields_own_scorer(submission, tmp_path):
    """That of 2018: it cannot score 2019's without images of SCC and UNK."""
    scorer = pytest.importorskip("isic_challenge_scoring.classification")
    out, names, rows, truth, wanted = submission
    with (tmp_path / "truth.csv").open("w") as file:
        print("image", *names, sep=",", file=file)
        for row, label in zip(rows, truth, strict=True):
            print(row["image"], *(float(name == label) for name in names), sep=",", file=file)
    metric = scorer.ClassificationMetric.BALANCED_ACCURACY
    found = scorer.ClassificationScore.from_file(tmp_path / "truth.csv", out, metric)
    assert found.overall == pytest.approx(wanted)


def test_a_submission_has_each_image_once(run, originals, command):
    path = originals[0] / "ISIC_0000000.jpg"
    again = originals[0] / ".." / originals[0].name / path.name
    status, _, err = command(predict, f"--run={run}", "--format=isic2018", str(path), str(again))
    assert (status, "PATHS: expected one file for each image id" in err) == (2, True)


def test_an_ensemble(run, make_run, originals, command, tmp_path):
    """The mean of the probabilities of runs with another seed and another preparation."""
    other = make_run("other", size=60, seed=1, logit_adjustment=0.5)
    paths = [str(originals[0] / f"ISIC_{i:07d}.jpg") for i in range(0, 140, 9)]
    runs = [jaxattn.load_run(each) for each in (run, other)]
    wanted = np.mean([each.predict(paths)[0] for each in runs], axis=0)
    out, drawn = tmp_path / "out.csv", tmp_path / "drawn"
    both = (f"--run={run}", f"--run={other}")
    arguments = (*both, f"--out={out}", f"--overlays={drawn}", *paths)
    assert command(predict, *arguments)[0] == 0
    rows = predicted(out)
    found = [[float(row[f"p_{name}"]) for name in CLASSES] for row in rows]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    shares = np.mean(
        [np.array(list(each.metadata["training_images"].values())) for each in runs], axis=0
    )
    decided = (wanted / (shares / shares.sum()) ** 0.5).argmax(1)
    assert [row["prediction"] for row in rows] == [CLASSES[i] for i in decided]
    assert sorted(path.name for path in (drawn / "1").iterdir())[:2] == [
        "ISIC_0000000.attention.png",
        "ISIC_0000000.grad_cam.png",
    ]
    plain = shutil.copytree(run, tmp_path / "plain")
    config = json.loads((plain / "config.json").read_text())
    config["evaluation"]["logit_adjustment"] = 0.0
    (plain / "config.json").write_text(json.dumps(config))
    status, _, err = command(predict, f"--run={run}", f"--run={plain}", *paths)
    assert (status, "evaluation.logit_adjustment: expected those of" in err) == (2, True)


def test_test_time_augmentation(run, originals):
    """The mean over the image's flips and quarter turns, classified one by one."""
    pixels = np.asarray(Image.open(originals[0] / "ISIC_0000007.jpg").resize((32, 32)))
    views = [np.rot90(each, k) for each in (pixels, pixels[:, ::-1]) for k in range(4)]
    wanted = jaxattn.load_run(run).predict([np.ascontiguousarray(each) for each in views])[0]
    found = jaxattn.load_run(run, tta=8).predict([pixels])[0]
    np.testing.assert_allclose(found[0], wanted.mean(0), rtol=1e-4)


def test_overlays(run, originals, command, tmp_path):
    path = originals[0] / "ISIC_0000003.jpg"  # turned by EXIF
    paths = [str(path), str(path.with_name("ISIC_0000004.jpg")), str(tmp_path / "ISIC_0000003.png")]
    Image.new("RGB", (9, 9)).save(paths[2])
    status, *_ = command(predict, f"--run={run}", f"--overlays={tmp_path / 'drawn'}", *paths)
    assert status == 0
    names = [f"ISIC_000000{name}" for name in ("3-2", "3", "4")]
    assert sorted(each.name for each in (tmp_path / "drawn").iterdir()) == [
        f"{name}.{kind}.png" for name in names for kind in ("attention", "grad_cam")
    ]
    loaded = jaxattn.load_run(run, explain=True)
    assert loaded.config.evaluation.grad_cam == "Conv_1"
    _, maps = loaded.predict([path])
    seen = np.asarray(Image.open(path).rotate(-90, expand=True).resize((32, 32), 2))
    wanted = overlays.overlay(seen, maps["grad_cam"][0], colormap="viridis")
    found = np.asarray(Image.open(tmp_path / "drawn/ISIC_0000003.grad_cam.png"))
    assert np.abs(found.astype(int) - wanted).mean() < 3


PREDICT = """
import pathlib
from jaxattn import cli, predict
import tests.tiny
predict.define_flags()
try:
    cli.run_main(predict.main, positional=True)
finally:
    # Not ru_maxrss, which a child process has from its parent.
    print(int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure memory")
def test_memory_does_not_grow_with_the_number_of_images(make_run, originals, tmp_path):
    """2,700 more images of 160×160 are 198 MiB, of which nothing may be held."""
    large = make_run("large", image_size=160)
    peaks = []
    for count in (300, 3000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for i in range(count):
            (folder / f"{i}.jpg").symlink_to(originals[0] / f"ISIC_{i % 140:07d}.jpg")
        arguments = [f"--run={large}", f"--out={folder}.csv", str(folder)]
        run = [sys.executable, "-c", PREDICT, *arguments]
        done = subprocess.run(
            run, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True
        )
        assert done.stderr.splitlines()[-1] == f"{count} images: {count} classified"
        peaks.append(float(done.stdout))
    print(f"peak {peaks[0]:.0f} -> {peaks[1]:.0f} MiB")
    assert peaks[1] - peaks[0] < 40
