"""One photograph under two ids is found, counted, kept together or dropped."""

import dataclasses
import hashlib
import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from jaxattn.data import duplicates, hashes, leaks, splits
from jaxattn.errors import InputError


def photograph(seed, size=(128, 96)):
    """Blobs of every size, the larger the stronger, as in a photograph; no two seeds are alike."""
    rng = np.random.default_rng(seed)
    total = np.full((size[1], size[0]), 118.0)
    for octave in range(6):
        noise = rng.normal(0, 40 / 1.6**octave, (3 * 2**octave, 4 * 2**octave)).astype(np.float32)
        total += np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))
    grey = np.clip(total, 0, 255)[..., None] * (1.0, 0.8, 0.7)
    return Image.fromarray(grey.astype(np.uint8))


def perceptual(image):
    return hashes.perceptual(np.asarray(image.convert("RGB")))


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


COPIES = {
    "encoded again": lambda image: jpeg(image, 40),
    "smaller": lambda image: image.resize((64, 48), Image.Resampling.LANCZOS),
    "squashed": lambda image: image.resize((96, 96), Image.Resampling.LANCZOS),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned and mirrored": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_near_and_others_are_not(copy):
    originals = np.array([perceptual(photograph(seed)) for seed in range(20)])
    copies = np.array([perceptual(COPIES[copy](photograph(seed))) for seed in range(3, 8)])
    found = hashes.near(copies, originals)
    assert list(zip(*found, strict=True)) == [(i, i + 3) for i in range(5)]
    swapped = hashes.near(originals, copies)  # the smaller set is moved, whichever comes first
    assert sorted(zip(*swapped, strict=True)) == [(i + 3, i) for i in range(5)]


def test_equal_hashes_are_all_paired():
    first, second = np.array(["a", "", "b", "a"]), np.array(["b", "a", "", "a"])
    pairs = sorted(zip(*hashes.same(first, second), strict=True))
    every = [(i, j) for i, a in enumerate(first) for j, b in enumerate(second) if a == b != ""]
    assert pairs == every


def test_the_hash_of_pixels_is_of_size_and_values():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    wanted = hashlib.sha256(b"2x4" + bytes(range(24))).hexdigest()
    assert hashes.pixels(image) == wanted
    assert hashes.pixels(image.reshape(4, 2, 3)) != wanted


@pytest.fixture
def dataset(make_dataset):
    """40 images of 40 lesions in two classes; 20 + i shows what i shows, for i < 6.

    The first three are the same pixels, the next three are mirrored.
    """
    made = make_dataset([0, 1] * 20)
    shown = [photograph(i if i < 20 or i >= 26 else i - 20) for i in range(40)]
    for i in (23, 24, 25):
        shown[i] = shown[i].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = [np.asarray(image) for image in shown]
    columns = {
        "pixel_hash": np.array([hashes.pixels(image) for image in pixels]),
        "perceptual_hash": np.array([hashes.perceptual(image) for image in pixels]),
    }
    return dataclasses.replace(made, table=made.table | columns)


SPLIT = {"train": np.arange(20), "validation": np.arange(26, 30), "test": np.arange(20, 26)}


def test_duplicates_across_parts_are_counted(dataset):
    counts = duplicates.count(dataset, SPLIT)
    assert counts == {"train, test": {"same_pixels": 3, "near_duplicate": 3}}
    assert duplicates.describe(counts) == (
        "train and test share 3 photographs under two ids and 3 near-duplicates"
    )
    measured = leaks.measure(dataset, SPLIT)
    assert measured == {"lesion": 0, "image": 0, "same_pixels": 0.5, "near_duplicate": 1.0}


def test_drop_takes_them_out_of_training_with_their_lesion(dataset):
    dataset.table["lesion_id"][19] = dataset.table["lesion_id"][5]  # shows the lesion of a copy
    left = duplicates.drop(dataset, SPLIT)
    assert left["train"].tolist() == [*range(6, 19)]
    assert left["test"].tolist() == SPLIT["test"].tolist()
    assert duplicates.count(dataset, left) == {}


@pytest.mark.parametrize("strategy", ["lesion", "datta", "folds"])
def test_together_draws_them_as_one_lesion(dataset, strategy):
    apart = together = 0
    for seed in range(5):
        options = {"strategy": strategy, "seed": seed, "test": 0.3, "validation": 0.2}
        apart += len(duplicates.count(dataset, splits.make(dataset, **options)))
        split = splits.make(dataset, duplicates="together", **options)
        together += len(duplicates.count(dataset, split))
        assert sorted(np.concatenate(list(split.values()))) == list(range(40))
    assert (apart > 0, together) == (True, 0)


def test_drop_as_a_choice_of_the_split(dataset):
    whole = splits.make(dataset, test=0.4, validation=0.2)
    left = splits.make(dataset, test=0.4, validation=0.2, duplicates="drop")
    np.testing.assert_array_equal(left["test"], whole["test"])
    assert set(left["train"]) < set(whole["train"])
    assert duplicates.count(dataset, left) == {}


def test_wrong_choices_are_one_clear_error(dataset, make_dataset):
    for options, wanted in (
        ({"duplicates": "keep"}, "one of drop, report, together"),
        ({"duplicates": "together", "strategy": "official"}, "report or drop with split.strategy"),
        ({"duplicates": "drop", "leak": "select_on_test"}, "report with split.leak='select_on_te"),
    ):
        with pytest.raises(InputError, match=f"split.duplicates: expected {wanted}"):
            splits.make(dataset, **options)
    for action in ("together", "drop"):
        with pytest.raises(InputError, match="report for noise, which has no hashes of its pixels"):
            splits.make(make_dataset([0, 1] * 20), duplicates=action)


def test_data_without_hashes_say_so_in_one_line(make_dataset, monkeypatch):
    said = []
    monkeypatch.setattr(duplicates.logging, "warning", lambda text, *args: said.append(text % args))
    made = make_dataset([0, 1] * 20)
    duplicates.warn(made, duplicates.count(made, SPLIT), "report")
    assert said == []  # rendered images have none
    prepared = dataclasses.replace(made, fingerprint={"labels": "x"})
    duplicates.warn(prepared, duplicates.count(prepared, SPLIT), "report")
    assert len(said) == 1
    assert "python -m jaxattn.prepare --verify --out=DIR adds them" in said[0]


def test_patients_stay_together(dataset):
    patients = np.array([f"P{i % 2}{i // 8}" for i in range(40)])
    patients[:2] = ""
    with_patients = dataclasses.replace(dataset, table=dataset.table | {"patient_id": patients})
    split = splits.make(with_patients, "patient", test=0.3, validation=0.2)
    sides = [set(patients[rows]) - {""} for rows in split.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 10
    assert leaks.measure(with_patients, split)["patient"] == 0
    with pytest.raises(InputError, match="without patients, got 'patient'"):
        splits.make(dataset, "patient")
