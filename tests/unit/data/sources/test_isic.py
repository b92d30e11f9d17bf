"""ISIC 2016 and 2017 in the folders of the challenges, made small."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxattn import prepare
from jaxattn.data import classes, images, splits
from jaxattn.data.sources import attributes, isic
from jaxattn.data.tfds import reader, writer
from jaxattn.errors import InputError

#: The images of each part, and melanoma, seborrheic_keratosis of each.
PARTS = {
    "Training": {"ISIC_0000001": (1, 0), "ISIC_0000004": (0, 1), "ISIC_0000002": (0, 0)},
    "Validation": {"ISIC_0000003": (0, 0)},
    "Test_v2": {"ISIC_0000005": (1, 0), "ISIC_0000006": (0, 1)},
}
LABELS = {
    "ISIC_0000001": ("melanoma", "train"),
    "ISIC_0000002": ("nevus", "train"),
    "ISIC_0000003": ("nevus", "validation"),
    "ISIC_0000004": ("seborrheic_keratosis", "train"),
    "ISIC_0000005": ("melanoma", "test"),
    "ISIC_0000006": ("seborrheic_keratosis", "test"),
}
#: 6 by 4 pixels of 4 superpixels: the quarters, row by row.
QUARTERS = np.kron(np.arange(4).reshape(2, 2), np.ones((2, 3), int))


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)


def coloured(numbers):
    """Superpixels as RGB, by the challenge's rule."""
    return np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)


@pytest.fixture
def isic2017(tmp_path, fake):
    """The layout of 2017; the images are of 60 by 45 pixels."""
    source = tmp_path / "isic2017"
    for part, labels in PARTS.items():
        rows = [(name, *map(float, hot)) for name, hot in labels.items()]
        header = ("image_id", "melanoma", "seborrheic_keratosis")
        fake.write_csv(source / f"ISIC-2017_{part}_Part3_GroundTruth.csv", header, rows)
        data = source / f"ISIC-2017_{part}_Data"
        data.mkdir()
        for name in labels:
            number = int(name[-1])
            (data / f"{name}.jpg").write_bytes(fake.jpeg(number))
            if part != "Test_v2":
                folder = source / f"ISIC-2017_{part}_Part1_GroundTruth"
                save(folder / f"{name}_segmentation.png", fake.disc(number))
    people = [("ISIC_0000001", "55", "female"), ("ISIC_0000002", "unknown", "unknown")]
    table = source / "ISIC-2017_Training_Data" / "ISIC-2017_Training_Data_metadata.csv"
    fake.write_csv(table, ("image_id", "age_approximate", "sex"), people)
    return source


def write_features(source, name, annotations, numbers=QUARTERS, part="Training"):
    """ISIC 2017 Part 2: superpixels beside the image, annotations in their own folder."""
    save(source / f"ISIC-2017_{part}_Data" / f"{name}_superpixels.png", coloured(numbers))
    path = source / f"ISIC-2017_{part}_Part2_GroundTruth" / f"{name}_features.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(annotations if isinstance(annotations, str) else json.dumps(annotations))
    return path


def write_masks(source, name, masks):
    """ISIC 2018 Task 2: one mask for each attribute."""
    for attribute, mask in masks.items():
        folder = source / "ISIC2018_Task2_Training_GroundTruth_v3"
        save(folder / f"{name}_attribute_{attribute}.png", mask)


def test_2017_rows(isic2017):
    index = isic.read(isic2017, 2017)
    assert index.class_names == ("melanoma", "seborrheic_keratosis", "nevus")
    assert {row.image_id: (row.dx, row.part) for row in index.images} == LABELS
    assert [row.image_id for row in index.images] == sorted(LABELS)
    assert all(row.lesion_id == row.image_id for row in index.images)
    assert [row.has_mask for row in index.images] == [True] * 4 + [False] * 2
    assert not any(row.has_attributes for row in index.images)
    first, second, third = index.images[:3]
    assert (first.age, first.sex) == (55, "female")
    assert math.isnan(second.age)
    assert second.sex == third.sex == ""
    assert index.problems == {}
    assert set(index.notes) == {"without_mask"}


def test_2017_is_split_as_the_challenge_was(isic2017, tmp_path):
    report = writer.write(isic.read(isic2017, 2017), tmp_path / "out")
    assert report["parts"] == {"train": 3, "validation": 1, "test": 2}
    assert "attributes" not in report
    dataset = reader.load(tmp_path / "out")
    split = splits.make(dataset, "official")
    for part, rows in split.items():
        ids = [name for name, (_, where) in LABELS.items() if where == part]
        assert dataset.table["image_id"][rows].tolist() == ids
    benign = classes.select(dataset, ("benign=nevus", "seborrheic_keratosis"))
    split = splits.make(benign, "official", leak="select_on_test")
    assert benign.table["image_id"][split["train"]].tolist() == ["ISIC_0000002", "ISIC_0000004"]
    assert split["validation"].tolist() == split["test"].tolist() == [3]


def test_2016_has_no_header_and_numbers_for_testing(tmp_path, fake):
    rows = {"Training": ["benign", "malignant", "benign", "benign"], "Test": ["0.0", "1.0"]}
    number = 0
    for part, labels in rows.items():
        named = []
        for label in labels:
            number += 1
            named.append((f"ISIC_000000{number}", label))
            data = tmp_path / f"ISBI2016_ISIC_Part3_{part}_Data"
            data.mkdir(exist_ok=True)
            (data / f"ISIC_000000{number}.jpg").write_bytes(fake.jpeg(number))
            masks = tmp_path / f"ISBI2016_ISIC_Part1_{part}_GroundTruth"
            save(masks / f"ISIC_000000{number}_Segmentation.png", fake.disc(number))
        fake.write_csv(
            tmp_path / f"ISBI2016_ISIC_Part3_{part}_GroundTruth.csv", named[0], named[1:]
        )
    index = isic.read(tmp_path, 2016)
    found = [(row.dx, row.part) for row in index.images]
    assert found == [("benign", "train"), ("malignant", "train")] + [("benign", "train")] * 2 + [
        ("benign", "test"),
        ("malignant", "test"),
    ]
    assert all(row.has_mask for row in index.images)
    assert index.problems == index.notes == {}


def test_a_validation_part_is_drawn_where_the_challenge_has_none(make_dataset):
    dataset = make_dataset(np.arange(24) % 2, names=("benign", "malignant"))
    part = np.array(["train"] * 20 + ["test"] * 4)
    dataset.table["part"] = part
    split = splits.make(dataset, "official", validation=0.3)
    assert split["test"].tolist() == [20, 21, 22, 23]
    assert sorted([*split["train"], *split["validation"]]) == list(range(20))
    assert np.bincount(dataset.labels[split["validation"]]).tolist() == [3, 3]
    assert not len(splits.make(dataset, "official", validation=0.0)["validation"])
    with pytest.raises(
        InputError,
        match="split.strategy: expected lesion, datta, folds or file for noise, got 'official'",
    ):
        splits.make(make_dataset([0, 1]), "official")


def test_attributes_of_superpixels_by_hand(isic2017, tmp_path):
    annotations = {
        "pigment_network": [0, 1, 0, 0],
        "negative_network": [0, 0, 0, 0],
        "milia_like_cyst": [0, 1, 1, 0],
        "streaks": [0.0, 0.0, 0.0, 1.0],
    }
    files = {
        "annotations": write_features(isic2017, "ISIC_0000001", annotations),
        "superpixels": isic2017 / "ISIC-2017_Training_Data" / "ISIC_0000001_superpixels.png",
    }
    data = attributes.encode(files, Path("i.jpg"), (6, 4), (6, 4))
    wanted = np.array([0, 0b101, 0b100, 0b1000])[QUARTERS]
    np.testing.assert_array_equal(images.decode_values(data, None), wanted)
    np.testing.assert_array_equal(images.decode_values(data, (2, 2)), [[0, 5], [4, 8]])


def test_superpixels_are_numbered_over_three_channels(tmp_path):
    numbers = np.array([[0, 255, 256], [65535, 65536, 70000]])
    save(tmp_path / "s.png", coloured(numbers))
    np.testing.assert_array_equal(attributes.read_superpixels(tmp_path / "s.png"), numbers)


def test_attributes_as_masks_are_read_through_their_palette(tmp_path):
    network = np.arange(24).reshape(4, 6) % 5 == 0
    globules = np.arange(24).reshape(4, 6) % 3 == 0
    save(tmp_path / "n.png", network)
    image = Image.fromarray(np.where(globules, 0, 1).astype(np.uint8))
    image.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white
    image.save(tmp_path / "g.png")
    files = {"pigment_network": tmp_path / "n.png", "globules": tmp_path / "g.png"}
    data = attributes.encode(files, Path("i.jpg"), (6, 4), (6, 4))
    np.testing.assert_array_equal(images.decode_values(data, None), network + 16 * globules)


def test_prepared_attributes(isic2017, tmp_path, fake):
    """Superpixels come before masks of the year after; images without either have none."""
    annotations = {"streaks": [1, 0, 0, 0]}
    numbers = np.kron(QUARTERS, np.ones((11, 10), int))  # 44 by 60, an image of 45 by 60
    numbers = np.concatenate([numbers, numbers[-1:]])
    write_features(isic2017, "ISIC_0000001", annotations, numbers)
    write_masks(isic2017, "ISIC_0000001", {"globules": np.ones((45, 60), bool)})
    write_masks(isic2017, "ISIC_0000004", {"globules": fake.disc(2), "streaks": fake.disc(5)})
    index = isic.read(isic2017, 2017)
    assert set(index.notes["without_attributes"]) == set(LABELS) - {
        "ISIC_0000001",
        "ISIC_0000004",
    }
    assert writer.write(index, tmp_path / "out")["attributes"] == 2
    dataset = reader.load(tmp_path / "out")
    assert dataset.table["has_attributes"].tolist() == [True, False, False, True, False, False]
    examples = list(dataset.records)
    assert [set(example) - {"image"} for example in examples] == [
        {"mask", "attributes"},
        {"mask"},
        {"mask"},
        {"mask", "attributes"},
        set(),
        set(),
    ]
    np.testing.assert_array_equal(examples[0]["attributes"], np.where(numbers == 0, 8, 0))
    wanted = 16 * fake.disc(2) + 8 * fake.disc(5)
    np.testing.assert_array_equal(examples[3]["attributes"], wanted)
    (only,) = [dataset.decoding(("attributes",)).records[3]]
    assert set(only) == {"image", "attributes"}


MALFORMED = {
    "no JSON": (
        lambda source: write_features(source, "ISIC_0000001", '{"streaks": [1'),
        r"ISIC_0000001_features\.json: expected a JSON object, got .* cannot be read",
    ),
    "no attribute": (
        lambda source: write_features(source, "ISIC_0000001", {"streak": [1, 0, 0, 0]}),
        r"ISIC_0000001_features\.json: expected a JSON object with some of pigment_network",
    ),
    "too few values": (
        lambda source: write_features(source, "ISIC_0000001", {"streaks": [1, 0, 0]}),
        r"features\.json, streaks: expected 4 values, one for each superpixel of .*"
        r"ISIC_0000001_superpixels\.png, got 3",
    ),
    "values that are no bits": (
        lambda source: write_features(source, "ISIC_0000001", {"streaks": [1, 0, 0, [2]]}),
        r"features\.json, streaks: expected 0 or 1 for each superpixel",
    ),
    "superpixels of another aspect": (
        lambda source: write_features(source, "ISIC_0000001", {"streaks": [1] * 4}, QUARTERS.T),
        r"superpixels\.png: expected .* image .*ISIC_0000001\.jpg \(60x45\), got 4x6",
    ),
    "mask of another aspect": (
        lambda source: write_masks(source, "ISIC_0000001", {"globules": np.eye(9, dtype=bool)}),
        r"attribute_globules\.png: expected .*ISIC_0000001\.jpg \(60x45\), got 9x9",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_attributes_are_named(isic2017, tmp_path, case):
    spoil, message = MALFORMED[case]
    spoil(isic2017)
    index = isic.read(isic2017, 2017)
    with pytest.raises(InputError, match=message):
        writer.write(index, tmp_path / "out")
    report = writer.write(index, tmp_path / "out", skip_bad=True)
    assert list(report["problems"]["unusable_attributes"]) == ["ISIC_0000001"]
    assert report["images"] == 5


def test_malformed_tables_are_named(isic2017, tmp_path):
    table = isic2017 / "ISIC-2017_Training_Part3_GroundTruth.csv"
    text = table.read_text()
    table.write_text(text.replace("1.0,0.0", "1.0,1.0"))
    with pytest.raises(
        InputError, match=r"row 2: expected one diagnosis, got melanoma and seborrheic_keratosis"
    ):
        isic.read(isic2017, 2017)
    table.write_text(text.replace("1.0,0.0", "0.5,0.0"))
    with pytest.raises(InputError, match=r"row 2, melanoma: expected 0 or 1, got '0.5'"):
        isic.read(isic2017, 2017)
    table.write_text(text + "ISIC_0000003,0.0,0.0\n")
    problems = isic.read(isic2017, 2017).problems
    assert problems["conflicting_rows"] == {
        "ISIC_0000003": "is in the train and the validation part"
    }
    table.write_text(text + "ISIC_0000009,0.0,0.0\n")
    (isic2017 / "ISIC-2017_Validation_Part3_GroundTruth.csv").unlink()
    index = isic.read(isic2017, 2017)
    assert list(index.problems["missing_image"]) == ["ISIC_0000009"]
    assert list(index.problems["unlabelled_image"]) == ["ISIC_0000003"]
    assert index.notes["missing_part"] == {"validation": "has no table of diagnoses"}


def test_wrong_folders_and_years_are_one_clear_error(isic2017, tmp_path):
    with pytest.raises(InputError, match="year: expected 2016 or 2017, got 2018"):
        isic.read(isic2017, 2018)
    with pytest.raises(
        InputError, match="source: expected a folder that holds ISIC 2017, got .*nowhere"
    ):
        isic.read(tmp_path / "nowhere", 2017)
    with pytest.raises(
        InputError,
        match="expected a table of diagnoses such as ISBI2016_ISIC_Part3_Train.*, got none",
    ):
        isic.read(isic2017, 2016)
    table = tmp_path / "ISBI2016_ISIC_Part3_Training_GroundTruth.csv"
    table.write_text("ISIC_0000001,evil\n")
    with pytest.raises(
        InputError, match=r"row 1, diagnosis: expected benign, malignant, 0 or 1, got 'evil'"
    ):
        isic.read(tmp_path, 2016)
    table.write_text("ISIC_0000001,benign\n")
    with pytest.raises(
        InputError, match="expected images of ISIC 2016 in its _Data folders, got none"
    ):
        isic.read(tmp_path, 2016)


def test_the_command_line(isic2017, tmp_path, command):
    out = tmp_path / "out"
    status, printed, err = command(
        prepare, "--dataset=isic2017", "--size=20", f"--source={isic2017}", f"--out={out}"
    )
    assert status == 0, err
    cells = {tuple(line.replace("│", " ").split()) for line in printed.splitlines()}
    wanted = {("melanoma", "2"), ("nevus", "2"), ("test", "part", "2"), ("masks", "4")}
    assert wanted <= cells
    assert reader.load(out).records[0]["image"].shape == (20, 27, 3)
