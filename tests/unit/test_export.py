import csv
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from jaxattn import export, run_dir
from jaxattn.data.augment import NORMALISATIONS
from jaxattn.errors import InputError
from jaxattn.export import card, formats, stablehlo
from tests.runs import untrained


def photo(path, size, orientation=1, **options):
    """A JPEG of smooth colours, to be turned as EXIF says."""
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[274] = orientation
    image.save(path, exif=exif, quality=90, **options)
    return path


GEOMETRIES = [
    {"image_size": 32},
    {"image_size": (24, 40)},
    {"image_size": 32, "centre_crop": 0.85},
    {"image_size": 32, "prepared_size": 48},
    {"image_size": (24, 40), "centre_crop": 0.7, "prepared_size": 64},
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_snippet_reads_the_pixels_of_evaluation(tiny_config, tmp_path, geometry):
    geometry = dict(geometry)
    prepared_size = geometry.pop("prepared_size", None)
    tiny_config.dataset.update(geometry)
    run = untrained(tmp_path / "run", tiny_config, prepared_size=prepared_size)
    script = {"__name__": "script"}
    exec(stablehlo.snippet(run), script)
    assert script["CLASSES"] == ["a", "b", "c"]
    for size in ((600, 450), (451, 603), (30, 20)):
        for orientation in (1, 3, 6):
            path = photo(tmp_path / "photo.jpg", size, orientation)
            np.testing.assert_array_equal(script["read"](path), run.read(path))
    grey = tmp_path / "grey.png"
    Image.fromarray(np.arange(240, dtype=np.uint8).reshape(12, 20)).save(grey)
    np.testing.assert_array_equal(script["read"](grey), run.read(grey))


@pytest.mark.parametrize(
    ("crops", "tta"),
    [
        ({"strategy": "none"}, 8),
        ({"strategy": "single", "size": 24}, 1),
        ({"strategy": "multi", "size": 16, "count": 4, "vote": True}, 8),
    ],
)
def test_the_program_computes_what_evaluation_computes(tiny_config, tmp_path, crops, tta):
    tiny_config.crops.update(crops)
    tiny_config.evaluation.update(tta=tta, grad_cam="Conv_0")
    run = untrained(tmp_path / "run", tiny_config)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    exported = stablehlo.export(run)
    probabilities, maps = exported.call(images)
    wanted, wanted_maps = run.predict(list(images))
    np.testing.assert_allclose(probabilities, wanted, atol=1e-5)
    assert set(maps) == set(wanted_maps) == {"attention", "grad_cam"}
    for name, each in maps.items():
        np.testing.assert_allclose(each, wanted_maps[name], atol=1e-5)


def test_safetensors_are_the_weights(tiny_config, tmp_path):
    run = untrained(tmp_path / "run", tiny_config)
    export.write(run, tmp_path / "out", ["safetensors"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    leaves = {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(run.variables)
    }
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        assert set(file.keys()) == set(leaves)
        for path, leaf in leaves.items():
            assert file.get_tensor(path).tobytes() == np.asarray(leaf).tobytes()
        facts = {key: json.loads(file.metadata()[key]) for key in ("class_names", "preprocessing")}
    assert facts["class_names"] == ["a", "b", "c"]
    assert facts["preprocessing"]["image_size"] == [32, 32]


@pytest.mark.parametrize("name", ["caffe", "imagenet", "bgr_255", "unit"])
def test_a_normalisation_as_numbers(name):
    pixels = np.random.default_rng(1).random((4, 5, 3), np.float32)
    found = formats.affine(name)
    by_hand = pixels @ np.array(found["matrix"]) + np.array(found["offset"])
    np.testing.assert_allclose(by_hand, NORMALISATIONS[name](pixels), rtol=1e-5, atol=1e-4)


def test_what_is_not_affine_is_not_called_so(monkeypatch):
    monkeypatch.setitem(NORMALISATIONS, "square", lambda pixels: pixels**2)
    assert formats.affine("square") is None


def test_nothing_is_overwritten_and_nothing_left_behind(tiny_config, tmp_path, monkeypatch):
    run = untrained(tmp_path / "run", tiny_config)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="--out: expected a new folder, got .*taken, which exists"):
        export.write(run, tmp_path / "taken", ["card"])

    def fail(run, folder):
        (folder / "half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(export.FORMATS, "fails", fail)
    with pytest.raises(InputError, match="can be written, got No space left on device"):
        export.write(run, tmp_path / "out", ["card", "fails"])
    with pytest.raises(InputError, match="out: expected a place that can be written"):
        export.write(run, tmp_path / "taken" / "thesis.tex" / "out", ["card"])
    with pytest.raises(InputError, match="--format: expected one of .*'safetensors'"):
        export.write(run, tmp_path / "out", ["safetensor"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "taken"]
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.tex"]


def test_the_card_of_a_run_that_was_not_evaluated(tiny_config, tmp_path):
    run = untrained(tmp_path / "run", tiny_config, names=("a|b", "c"))
    export.write(run, tmp_path / "out", ["card"])
    text = (tmp_path / "out" / "README.md").read_text()
    assert "not a medical device" in text
    assert "Not evaluated at this step" in text
    assert "It was not evaluated" in text
    assert "| a\\|b | 10 |" in text
    assert json.loads((tmp_path / "out" / "model_card.json").read_text())["evaluation"] is None


def test_the_card_has_the_counts_intervals_and_leaks_of_the_run(tiny_config, tmp_path):
    tiny_config.split.leak = "select_on_test"
    run = untrained(tmp_path / "run", tiny_config)
    parts = [("train", 3, 2), ("test", 5, 4)]
    with (run.folder / run_dir.SPLIT).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "lesion_id", "split", "leak"])
        for part, images, lesions in parts:
            rows.writerows([i, f"{part}{i % lesions}", part, "x"] for i in range(images))
    row = {"support": 1, "recall": 0.5, "auc": None}
    evaluation = {
        "step": 0,
        "dataset": "synthetic",
        "images": 5,
        "lesions": 4,
        "measured_leak": {"lesion": 0.25, "image": 0.0},
        "metrics": {
            "per_class": dict.fromkeys("abc", row),
            "accuracy": 0.625,
            "macro": {"auc": 0.75},
            "calibration": {"ece": 0.125},
        },
        "intervals": {
            "method": "95% intervals of a bootstrap",
            "accuracy": [0.5, 0.6875],
            "per_class": {"a": {"recall": [0.25, 0.875]}},
        },
    }
    run_dir.write_json(run.folder / card.EVALUATION, evaluation)
    facts = card.card(run)
    assert facts["split"]["parts"] == {
        part: {"images": images, "lesions": lesions} for part, images, lesions in parts
    }
    assert facts["parameters"] == sum(
        leaf.size for leaf in jax.tree.leaves(run.variables["params"])
    )
    text = card.markdown(facts, ["model.stablehlo"])
    for line in (
        "- train: 3 images of 2 lesions",
        "- test: 5 images of 4 lesions",
        "| accuracy | 0.625 [0.500, 0.688] |",
        "| macro AUC | 0.750 |",
        "| a | 10 | 1 | 0.500 [0.250, 0.875] | - |",
        "| c | 30 | 1 | 0.500 | - |",
        "In brackets: 95% intervals of a bootstrap.",
    ):
        assert line in text.splitlines()
    assert "do not estimate performance on new patients" in text
    assert "the lesion of 25.0% of the test images" in text
    assert "off by 12.5%" in text
    # Tables without a gap, and no line of a template that was left.
    assert not re.search(r"\|\n\n\|", text)
    assert "\n\n\n" not in text
    assert "{" not in text


def test_an_evaluation_of_another_checkpoint_is_not_that_of_the_model(tiny_config, tmp_path):
    run = untrained(tmp_path / "run", tiny_config)
    run_dir.write_json(run.folder / card.EVALUATION, {"step": 24})
    assert card.card(run)["evaluation"] is None
