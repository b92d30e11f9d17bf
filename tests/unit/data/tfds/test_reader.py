"""What was written is what is read, in every process, and what is damaged is named."""

import json
import multiprocessing
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxattn.data import images
from jaxattn.data.dataset import COLUMNS
from jaxattn.data.sources import ham10000
from jaxattn.data.tfds import reader, writer
from jaxattn.errors import InputError


@pytest.fixture
def out(tmp_path, dataverse):
    """A prepared data set; its last image has no mask."""
    masks = dataverse / "HAM10000_segmentations_lesion_tschandl"
    (masks / "ISIC_0000009_segmentation.png").unlink()
    writer.write(ham10000.read(dataverse), tmp_path / "out")
    return tmp_path / "out"


def image_file(dataverse, image_id):
    return next(dataverse.glob(f"HAM10000_images_part_*/{image_id}.jpg"))


def test_table_is_that_of_the_source(out, fake):
    dataset = reader.load(out)
    assert dataset.name == "ham10000"
    assert dataset.class_names == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    further = ("image_source", "pixel_hash", "perceptual_hash")
    types = COLUMNS | dict.fromkeys(further, np.str_)
    assert {name: column.dtype.type for name, column in dataset.table.items()} == types
    rows = sorted(fake.ROWS, key=lambda row: row["image_id"])
    for name in ("image_id", "lesion_id", "dx_type"):
        assert dataset.table[name].tolist() == [row[name] for row in rows]
    for name in ("sex", "localization"):
        known = [row[name].replace("unknown", "") for row in rows]
        assert dataset.table[name].tolist() == known
    ages = [float(row["age"] or "nan") for row in rows]
    np.testing.assert_array_equal(dataset.table["age"], np.float32(ages))
    assert [dataset.class_names[label] for label in dataset.labels] == [row["dx"] for row in rows]
    assert dataset.table["has_mask"].tolist() == [True] * 7 + [False]


def test_records_are_those_of_the_source(out, dataverse, fake):
    dataset = reader.load(out)
    order = {row["image_id"]: i for i, row in enumerate(fake.ROWS)}
    assert len(dataset) == len(dataset.records) == 8
    for image_id, example in zip(dataset.table["image_id"], dataset.records, strict=True):
        with Image.open(image_file(dataverse, image_id)) as image:
            np.testing.assert_array_equal(example["image"], np.asarray(image))
        assert ("mask" in example) == (image_id != "ISIC_0000009")
        if "mask" in example:
            np.testing.assert_array_equal(example["mask"], fake.disc(order[image_id]))
            assert example["mask"].dtype == np.uint8


@pytest.mark.parametrize(("size", "shape"), [(32, (32, 32)), ((20, 50), (20, 50))])
def test_image_size(out, size, shape):
    example = reader.load(out, size).records[0]
    assert example["image"].shape == (*shape, 3)
    assert example["mask"].shape == shape
    assert set(np.unique(example["mask"])) == {0, 1}


@pytest.mark.parametrize("size", [0, (10, -1)])
def test_bad_image_size(out, size):
    with pytest.raises(InputError, match="image_size: expected one or two lengths in pixels, got"):
        reader.load(out, size)


def test_records_are_a_sequence(out):
    records = reader.load(out).records
    np.testing.assert_array_equal(records[-1]["image"], records[7]["image"])
    assert len(records[2:5]) == 3
    for index in (8, -9):
        with pytest.raises(IndexError):
            records[index]


def test_records_pickle_as_a_path(out):
    records = reader.load(out, 16).records
    expected = records[3]["image"]  # its files are open now
    np.testing.assert_array_equal(unopened(records)[3]["image"], expected)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(records.__getitem__, (3,))["image"], expected)


def test_plain_tfds_reads_it_without_tensorflow(out, dataverse):
    builder = tfds.builder_from_directory(out)
    assert builder.info.features["label"].names == list(ham10000.CLASS_NAMES)
    skip = tfds.decode.SkipDecoding()
    source = builder.as_data_source(split="train", decoders={"image": skip})
    assert len(source) == 8
    for record in source:
        path = image_file(dataverse, record["image_id"].decode())
        assert record["image"] == path.read_bytes()
        assert record["mask"].ndim == 3  # decoded by TFDS, also if it is a placeholder


def test_what_is_no_prepared_data_set(tmp_path):
    with pytest.raises(InputError, match="expected a folder of python -m jaxattn.prepare"):
        reader.load(tmp_path)
    with pytest.raises(InputError, match="expected a folder of python -m jaxattn.prepare"):
        reader.load(tmp_path / "nowhere")


def test_index_and_records_must_agree(out):
    index = out / "index.csv"
    whole = index.read_text().splitlines()
    index.write_text("\n".join(whole[:-1]))
    with pytest.raises(InputError, match=r"index\.csv: expected 8 rows, one per record, got 7"):
        reader.load(out)
    index.write_text("\n".join([*whole[:-1], whole[-1].replace("bkl", "nevus")]))
    with pytest.raises(InputError, match=r"index\.csv, row 9, dx: expected .*, got 'nevus'"):
        reader.load(out)
    index.unlink()
    with pytest.raises(InputError, match=r"index\.csv: expected a CSV file, got .* cannot be read"):
        reader.load(out)


def unopened(records):
    """A copy that has read nothing yet: type checks of tests read a record of every data set."""
    return pickle.loads(pickle.dumps(records))


def test_damaged_records_are_named(out):
    records = reader.load(out).records
    shard = next(out.glob("*array_record*"))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(
        InputError, match=rf"{out}, record 2, image ISIC_0000004: expected .* cannot be decoded"
    ):
        unopened(records)[2]
    shard.unlink()
    with pytest.raises(
        InputError, match=rf"{out}, record 2, image ISIC_0000004: expected .* cannot be decoded"
    ):
        unopened(records)[2]


def test_masks_that_nobody_asks_for_are_not_decoded(out, monkeypatch):
    whole = reader.load(out)
    monkeypatch.setattr(images, "decode_mask", lambda *_: pytest.fail("decoded"))
    bare = pickle.loads(pickle.dumps(whole.decoding(()).records))
    for example, other in zip(bare, whole.decoding(("attributes",)).records, strict=True):
        assert set(example) == {"image"}
        np.testing.assert_array_equal(example["image"], other["image"])
    with pytest.raises(pytest.fail.Exception, match="decoded"):
        whole.decoding(("mask",)).records[0]


def test_an_index_in_another_order_is_found(out):
    index = out / "index.csv"
    header, *rows = index.read_text().splitlines()
    records = reader.load(out).records
    index.write_text("\n".join([header, rows[1], rows[0], *rows[2:]]))
    table = reader.load(out).table
    swapped = reader.Records(out, table["image_id"], None)
    np.testing.assert_array_equal(swapped[2]["image"], records[2]["image"])
    with pytest.raises(InputError, match=r"image ISIC_0000003: .* is of b'ISIC_0000002'"):
        swapped[0]


def test_images_that_do_not_decode_are_named(out, monkeypatch):
    records = reader.load(out).records
    whole = reader.open_records(out)[1]
    half = {**whole, "image": whole["image"][:300]}
    monkeypatch.setattr(reader, "open_records", lambda folder: [half, half])
    with pytest.raises(
        InputError, match=rf"{out}, record 1, image ISIC_0000003: expected .* cannot be decoded"
    ):
        unopened(records)[1]


def test_the_placeholder_of_a_mask_is_one_black_pixel():
    np.testing.assert_array_equal(images.decode_mask(images.blank_mask(), None), [[0]])


def test_folder_may_be_moved(out, tmp_path):
    moved = shutil.move(out, tmp_path / "moved")
    assert reader.load(moved).records[0]["image"].shape == (45, 60, 3)
    assert json.loads((moved / "report.json").read_text())["images"] == 8


def test_a_data_set_prepared_by_version_1_is_read(tmp_path):
    """Three images of 16x12; what was drawn into them is known."""
    with tarfile.open(Path(__file__).with_name("prepared_v1.tar.gz")) as tar:
        tar.extractall(tmp_path, filter="data")
    dataset = reader.load(tmp_path / "prepared")
    assert (dataset.name, dataset.class_names) == ("ham10000", ham10000.CLASS_NAMES)
    assert dataset.table["image_id"].tolist() == ["ISIC_0000002", "ISIC_0000003", "ISIC_0000004"]
    assert dataset.table["lesion_id"].tolist() == ["HAM_0000001"] * 2 + ["HAM_0000002"]
    assert [dataset.class_names[label] for label in dataset.labels] == ["bkl", "bkl", "mel"]
    np.testing.assert_array_equal(dataset.table["age"], np.float32([80, 80, np.nan]))
    assert dataset.table["has_mask"].tolist() == [True, True, False]
    y, x = np.mgrid[:12, :16]
    for i, example in enumerate(dataset.records):
        drawn = np.stack([40 * i + 8 * x, 10 * y + 30, 5 * (x + y)], -1)
        assert np.abs(example["image"].astype(int) - drawn).max() < 25  # JPEG
        assert ("mask" in example) == (i < 2)
        if i < 2:
            np.testing.assert_array_equal(example["mask"], (x > 4 + i) & (y > 3))
