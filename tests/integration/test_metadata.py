"""Runs that see age, sex and site: from prepared data to predictions, in seconds."""

import csv
import json
import shutil
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxattn
from jaxattn import evaluate, export, predict, run_dir, train
from jaxattn.data.sources.source_index import SourceImage, SourceIndex
from jaxattn.data.tfds import writer
from jaxattn.errors import InputError
from jaxattn.evaluation import external
from jaxattn.models import registry
from jaxattn.run import stream

CLASSES = ("old", "young_man", "young_woman", "unknown")
FIELDS = ("age", "sex", "localization")
SITES = ("back", "face", "foot")


class Colours(nn.Module):
    """The mean colour, and a dense layer: it sees nothing in noise."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = nn.Conv(4, (3, 3), 4, dtype=self.dtype, name="conv")(images).mean((1, 2))
        return nn.Dense(self.num_classes, name="logits")(x.astype(jnp.float32)), {}


registry.MODELS.setdefault("colours", registry.Model(Colours, 16))


@pytest.fixture(autouse=True)
def setup_once(monkeypatch):
    """Other tests in this process have computed already: its devices are made."""
    monkeypatch.setattr(predict.runtime, "setup", lambda cpu_devices: None)


def patients(count, seed=0):
    """Whose class is a function of age and sex, and "unknown" where the sex is."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        age, sex = int(rng.integers(20, 90)), ("male", "female", "")[i % 3]
        young = {"male": "young_man", "female": "young_woman", "": "unknown"}[sex]
        site = SITES[int(rng.integers(3))] if i % 5 else ""
        dx = "old" if age >= 55 and sex else young
        yield {"age": float(age), "sex": sex, "localization": site}, dx


@pytest.fixture(scope="module")
def make_data(tmp_path_factory):
    """Prepares images of noise with their metadata: ``(rows, name) -> (images, data)``."""

    def make(rows, name="patients"):
        folder = tmp_path_factory.mktemp(name)
        (folder / "images").mkdir()
        rng, images = np.random.default_rng(1), []
        for i, (known, dx) in enumerate(rows):
            path = folder / "images" / f"{name}_{i:04d}.png"
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
            images.append(SourceImage(path.stem, path.stem, dx, "histo", path=path, **known))
        index = SourceIndex(name, "test", folder, CLASSES, "", images, {}, {})
        writer.write(index, folder / "data")
        return folder / "images", folder / "data"

    return make


@pytest.fixture(scope="module")
def data(make_data):
    return make_data(patients(240))


@pytest.fixture(scope="module")
def make_config(make_config, data):
    def make(fields=FIELDS, epochs=30):
        config = make_config()
        config.model = {"name": "colours"}
        config.dataset.update(name="prepared", data_dir=str(data[1]), image_size=16)
        config.split.update(test=0.3, validation=0.2)
        config.metadata.update(fields=fields, hide=0.0, units=32, joint_units=32, dropout_rate=0.0)
        config.optimizer.update(learning_rate=0.02)
        config.update(epochs=epochs, steps_per_epoch=5, batch_size=32, ema_decay=0.0)
        return config

    return make


@pytest.fixture(scope="module")
def run(make_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeing") / "run"
    assert train.train(make_config(), folder)
    evaluate.evaluate(folder)
    return folder


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_what_only_the_metadata_show_is_learnt_with_them(run, make_config, tmp_path):
    seeing = json.loads((run / "evaluation/test.json").read_text())["metrics"]
    assert seeing["balanced_accuracy"] > 0.9
    assert train.train(make_config(fields=(), epochs=4), tmp_path / "run")
    blind = evaluate.evaluate(tmp_path / "run")["metrics"]
    assert blind["balanced_accuracy"] < 0.5


def test_the_run_keeps_the_vocabulary_of_its_training_part(run):
    part = {row["image_id"]: row["split"] for row in read(run / "split.csv")}
    known = [row for row, _ in patients(240)]
    trained = [known[int(name[-4:])] for name in part if part[name] == "train"]
    ages = np.array([row["age"] for row in trained])
    found = json.loads((run / "classes.json").read_text())["metadata"]
    assert found.keys() == {"age", "sex", "localization"}
    assert found["age"] == pytest.approx([ages.mean(), ages.std()])
    assert (found["sex"], found["localization"]) == (["female", "male"], list(SITES))


def write_table(path, rows, columns=("image_id", *FIELDS)):
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)
    return path


@pytest.fixture
def table(tmp_path, data):
    """What is known of each image, as text: nothing where nothing is."""
    rows = [known for known, _ in patients(240)]
    names = [path.stem for path in sorted(data[0].glob("*.png"))]
    return write_table(
        tmp_path / "known.csv",
        [[name, *(row[field] for field in FIELDS)] for name, row in zip(names, rows, strict=True)],
    )


def test_predictions_with_a_table_are_those_of_evaluation(run, data, table, command, tmp_path):
    wanted = {row["image_id"]: row for row in read(run / "evaluation/test_predictions.csv")}
    paths = [str(data[0] / f"{name}.png") for name in wanted]
    out = tmp_path / "out.csv"
    options = (f"--run={run}", f"--metadata={table}", f"--out={out}", *paths)
    status, _, err = command(predict, *options)
    assert status == 0, err
    assert f"{len(paths)} of {len(paths)} images are in {table}" in err
    for row in read(out):
        for name in (*(f"p_{name}" for name in CLASSES), "prediction"):
            assert row[name] == wanted[row["image_id"]][name]


def test_python_gives_the_same_numbers_and_knows_what_is_missing(run, data):
    loaded = jaxattn.load_run(run)
    wanted = read(run / "evaluation/test_predictions.csv")[:16]
    known = [row for row, _ in patients(240)]
    records = [known[int(row["image_id"][-4:])] for row in wanted]
    paths = [data[0] / f"{row['image_id']}.png" for row in wanted]
    found, _ = loaded.predict(paths, metadata=records)
    np.testing.assert_allclose(
        found, [[float(row[f"p_{name}"]) for name in CLASSES] for row in wanted], rtol=1e-5
    )
    without, _ = loaded.predict(paths)
    for empty in ({}, {"age": None, "sex": "unknown"}, {"age": np.nan, "localization": "nose"}):
        again, _ = loaded.predict(paths, metadata=[empty] * len(paths))
        np.testing.assert_array_equal(again, without)
    woman = {"age": 25, "sex": "Female"}
    changed, _ = loaded.predict(paths[:3], metadata=[{"age": 25, "sex": "male"}, woman, {}])
    assert [CLASSES[i] for i in changed.argmax(1)] == ["young_man", "young_woman", "unknown"]


def test_an_unreadable_image_does_not_shift_the_metadata(run, data, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"none")
    paths = sorted(data[0].glob("*.png"))[:2]
    records = [
        {"age": 25, "sex": "male"},
        {"sex": "female", "age": 80},
        {"age": 25, "sex": "female"},
    ]
    loaded = jaxattn.load_run(run)
    found = list(stream([loaded], [paths[0], tmp_path / "broken.png", paths[1]], metadata=records))
    assert [bool(each.error) for each in found] == [False, True, False]
    decided = [CLASSES[found[i].probabilities.argmax()] for i in (0, 2)]
    assert decided == ["young_man", "young_woman"]


def test_a_table_of_other_words_and_other_images(run, data, tmp_path, command):
    path = sorted(data[0].glob("*.png"))[0]
    rows = [[path.stem, 30, "female", "anterior torso"], ["elsewhere", 31, "male", "nose"]]
    table = write_table(
        tmp_path / "t.csv", rows, ("image", "age_approx", "sex", "anatom_site_general")
    )
    paths = [str(each) for each in sorted(data[0].glob("*.png"))[:3]]
    status, out, err = command(predict, f"--run={run}", f"--metadata={table}", *paths)
    assert status == 0, err
    assert f"1 of 3 images are in {table}" in err
    assert (
        "localization: 1 values that the run does not know count as missing (anterior torso 1)"
        in err
    )
    assert [row.split(",")[-2] for row in out.splitlines()[1:]] == ["young_woman", *["unknown"] * 2]
    _, bare, err = command(predict, f"--run={run}", *paths)
    assert "no --metadata: all values count as missing" in err
    assert bare.splitlines()[2:] == out.splitlines()[2:]


def test_streamed_batches_and_a_resumed_run_are_the_same(make_config, data, tmp_path):
    config = make_config(epochs=2)
    assert train.train(config, tmp_path / "whole")
    config.loader.name = "grain"
    assert not train.train(config, tmp_path / "parts", lambda step: step == 3)
    assert train.train(config, tmp_path / "parts")
    one, other = (jaxattn.load_run(tmp_path / name, "latest") for name in ("whole", "parts"))
    np.testing.assert_array_equal(
        one.variables["params"]["metadata"]["joint"]["kernel"],
        other.variables["params"]["metadata"]["joint"]["kernel"],
    )


def test_test_time_augmentation_sees_the_metadata(run):
    plain = read(run / "evaluation/test_predictions.csv")
    result = evaluate.evaluate(run, settings={"tta": 8}, out=run.parent / "tta")
    assert result["metrics"]["balanced_accuracy"] > 0.9
    turned = read(run.parent / "tta/evaluation/test_predictions.csv")
    assert [row["image_id"] for row in turned] == [row["image_id"] for row in plain]


def test_other_metadata_under_the_same_ids_are_refused(run, make_data):
    rows = [
        ({**known, "age": known["age"] + (i == 7)}, dx)
        for i, (known, dx) in enumerate(patients(240))
    ]
    _, changed = make_data(rows)
    with pytest.raises(InputError, match=r"classes.json: expected the ages, sexes or sites that"):
        evaluate.evaluate(run, data_dir=str(changed), out=changed / "out")


def test_another_data_set_may_have_other_sites(run, make_data, tmp_path, capsys):
    rows = [
        ({**known, "localization": "anterior torso" if i % 4 else known["localization"]}, dx)
        for i, (known, dx) in enumerate(patients(40, seed=5))
    ]
    _, other = make_data(rows, "clinic")
    result = external.evaluate_on(run, str(other), out=tmp_path)
    assert result["metrics"]["balanced_accuracy"] > 0.85
    assert result["unknown_metadata"] == {"localization": {"anterior torso": 30}}
    line = "localization: 30 values that the run does not know count as missing (anterior torso 30)"
    assert line in capsys.readouterr().out


def test_a_run_goes_on_from_one_of_images_alone(make_config, tmp_path):
    """As Gessert et al. trained: the network of images first, then frozen, what joins the two."""
    blind = make_config(fields=(), epochs=1)
    assert train.train(blind, tmp_path / "blind")
    both = make_config(epochs=1)
    both.init_from, both.freeze = str(tmp_path / "blind"), "conv"
    assert train.train(both, tmp_path / "both")
    origin = json.loads((tmp_path / "both/origin.json").read_text())
    assert origin["taken"] == 3  # the convolution's kernel and bias, and the bias of the logits
    assert "params/logits/kernel" in origin["new"]
    assert all("/metadata/" in path for path in origin["new"] if "logits" not in path)
    before, after = (jaxattn.load_run(tmp_path / name).variables for name in ("blind", "both"))
    np.testing.assert_array_equal(
        after["params"]["conv"]["kernel"], before["params"]["conv"]["kernel"]
    )


def test_what_does_not_fit_is_one_line(run, data, make_config, tmp_path):
    path = next(iter(data[0].glob("*.png")))
    loaded = jaxattn.load_run(run)
    with pytest.raises(InputError, match=r"metadata: expected those of 1 images, got 2"):
        loaded.predict([path], metadata=[{}, {}])
    with pytest.raises(InputError, match=r"metadata\[0\]: expected one of age, .*got 'dx_type'"):
        loaded.predict([path], metadata=[{"dx_type": "histo"}])
    with pytest.raises(InputError, match=r"--run: expected a model of images alone.*sees age, sex"):
        export.write(loaded, tmp_path / "out")
    assert train.train(make_config(fields=(), epochs=1), tmp_path / "blind")
    assert run_dir.read_vocabulary(tmp_path / "blind") is None
    blind = jaxattn.load_run(tmp_path / "blind")
    with pytest.raises(InputError, match=r"metadata: expected a run that sees them.*images alone"):
        blind.predict([path], metadata=[{}])


def test_a_run_from_before_there_were_metadata_is_read(run, make_config, data, tmp_path):
    folder = tmp_path / "old"
    assert train.train(make_config(fields=(), epochs=1), folder)
    path = next(iter(data[0].glob("*.png")))
    before, _ = jaxattn.load_run(folder).predict([path])
    saved = json.loads((folder / run_dir.CONFIG).read_text())
    del saved["metadata"]
    (folder / run_dir.CONFIG).write_text(json.dumps(saved))
    after, _ = jaxattn.load_run(folder).predict([path])
    np.testing.assert_array_equal(after, before)
    evaluate.evaluate(folder)
    shutil.rmtree(folder)
