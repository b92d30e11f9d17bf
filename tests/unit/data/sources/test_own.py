"""Images of one's own: a folder for each class, a table, archives."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxattn import prepare
from jaxattn.data import prepared
from jaxattn.data.sources import archives, ham10000, image_folder, image_table, source_index
from jaxattn.errors import InputError


def write(fake, path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        path.write_bytes(fake.jpeg(seed))
    else:
        Image.open(io.BytesIO(fake.jpeg(seed))).save(path)


def write_mask(path, size=(60, 45)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 255).save(path)


def rows(index):
    return {i.image_id: (i.dx, i.part, i.lesion_id) for i in index.images}


def test_a_folder_for_each_class_below_each_part(tmp_path, fake):
    for i, name in enumerate(("train/benign/a.jpg", "train/malignant/b.png", "Val/benign/c.jpg")):
        write(fake, tmp_path / name, i)
    write(fake, tmp_path / "test/malignant/deeper/d.jpg", 3)
    write_mask(tmp_path / "masks/train/a_segmentation.png")
    write_mask(tmp_path / "masks/other.png")
    index = image_folder.read(tmp_path)
    assert index.class_names == ("benign", "malignant")
    assert rows(index) == {
        "a": ("benign", "train", "a"),
        "b": ("malignant", "train", "b"),
        "c": ("benign", "validation", "c"),
        "d": ("malignant", "test", "d"),
    }
    assert [image.image_id for image in index.images if image.mask] == ["a"]
    assert set(index.notes["mask_without_row"]) == {"other"}
    assert set(index.notes["without_mask"]) == {"b", "c", "d"}


def test_names_that_repeat_are_paths(tmp_path, fake):
    for i, name in enumerate(("x/1.jpg", "y/1.jpg", "x/2.jpg")):
        write(fake, tmp_path / name, i)
    assert set(rows(image_folder.read(tmp_path))) == {"x/1", "y/1", "x/2"}
    write(fake, tmp_path / "x/1.png", 9)
    assert "x/1" in image_folder.read(tmp_path).problems["conflicting_files"]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["a.jpg", "b.jpg"], r"two classes or more, got none; python -m jaxattn\.predict"),
        (["x/a.jpg"], r"two classes or more, got 1 \(x\)"),
        (["x/a.jpg", "X/b.jpg"], "differ in more than case, got X, x"),
        (["train/x/a.jpg", "y/b.jpg"], "folders of parts or of classes, got train beside y"),
    ],
)
def test_what_is_no_folder_of_classes(tmp_path, fake, names, wanted):
    for name in names:
        write(fake, tmp_path / name)
    with pytest.raises(InputError, match=wanted):
        image_folder.read(tmp_path)


@pytest.fixture
def table(tmp_path, fake):
    """Images in a folder and a table with semicolons that names them in three ways."""
    for i, name in enumerate(("images/a.jpg", "images/b.jpg", "images/c.png")):
        write(fake, tmp_path / name, i)
    write_mask(tmp_path / "masks/b.png")
    text = "File;Truth;Lesion;split;sex\na.jpg;mole;L1;Train;M\nimages/b;melanoma;;test;\n"
    (tmp_path / "list.csv").write_text(text + "c;mole;L1;train;female\n")
    return tmp_path


COLUMNS = {"image_column": "File", "label_column": "Truth", "group_column": "Lesion"}


def test_a_table(table):
    index = image_table.read(table, **COLUMNS)
    assert rows(index) == {
        "a": ("mole", "train", "L1"),
        "b": ("melanoma", "test", "b"),
        "c": ("mole", "train", "L1"),
    }
    assert [image.sex for image in index.images] == ["male", "", "female"]
    assert [image.image_id for image in index.images if image.mask] == ["b"]
    assert index.problems == {}
    with pytest.raises(InputError, match=r"--image-column: expected a column of .*list\.csv"):
        image_table.read(table)
    with pytest.raises(InputError, match="--label-column: expected .*Truth.*, got dx"):
        image_table.read(table, **COLUMNS | {"label_column": "dx"})


def test_what_a_table_lacks_is_said(table, fake):
    write(fake, table / "images" / "d.jpg", 7)
    with (table / "list.csv").open("a") as file:
        file.write("e;mole;;;\nimages/f.jpg;;;;\n")
    (table / "list.csv").rename(table / "list.tsv")
    index = image_table.read(table, **{**COLUMNS, "group_column": ""})
    assert set(index.problems) == {"missing_image", "unlabelled_image", "unlabelled_row"}
    assert list(index.problems["unlabelled_image"]) == ["d"]
    assert "without_group" in index.notes
    (table / "more.csv").write_text("x\n1\n")
    with pytest.raises(InputError, match=r"one table .*--table=FILE.*, got list\.tsv, more\.csv"):
        image_table.read(table, **COLUMNS)
    assert image_table.read(table, table="list.tsv", **COLUMNS).images


def test_folders_that_no_row_uses_are_noted(dataverse):
    masks = dataverse / "HAM10000_segmentations_lesion_tschandl"
    masks.rename(dataverse / "masks")
    index = ham10000.read(dataverse)
    source_index.note_unused(index)
    said = index.notes["unused_folder"][str(dataverse / "masks")]
    assert said.startswith("8 image files, as ISIC_0000002_segmentation.png")


@pytest.mark.parametrize("ending", ["_mask.png", ".png"])
def test_masks_with_another_ending_are_used(dataverse, ending):
    for path in (dataverse / "HAM10000_segmentations_lesion_tschandl").iterdir():
        path.rename(path.with_name(path.name.replace("_segmentation.png", ending)))
    assert all(image.has_mask for image in ham10000.read(dataverse).images)


def test_lesions_with_two_diagnoses_and_repeated_names_are_said(kaggle):
    index = ham10000.read(kaggle)
    index.images[0] = type(index.images[0])("ISIC_0000002", "HAM_0000003", "mel")
    index.check()
    assert index.notes["lesion_with_several_diagnoses"] == {"HAM_0000003": "mel and nv"}
    index.images[0] = index.images[1]
    with pytest.raises(InputError, match="each image_id once, got 'ISIC_0000003' twice"):
        index.check()


@pytest.mark.parametrize("kind", ["folder of zips", "tar", "zip"])
def test_archives_as_they_were_downloaded(tmp_path, dataverse, command, monkeypatch, kind):
    monkeypatch.setenv("COLUMNS", "80")
    source = tmp_path / "download"
    source.mkdir()
    if kind == "folder of zips":
        for part in sorted(path for path in dataverse.iterdir() if path.is_dir()):
            with zipfile.ZipFile(source / f"{part.name}.zip", "w") as zipped:
                for path in part.iterdir():
                    zipped.write(path, path.name)
        (source / "HAM10000_metadata").write_bytes((dataverse / "HAM10000_metadata").read_bytes())
    elif kind == "zip":
        source = source / "all.zip"
        with zipfile.ZipFile(source, "w") as zipped:
            for path in dataverse.rglob("*.*"):
                zipped.write(path, path.relative_to(dataverse))
            zipped.write(dataverse / "HAM10000_metadata", "HAM10000_metadata")
    else:
        source = source / "all.tar"
        with tarfile.open(source, "w") as tar:
            tar.add(dataverse, "ham")
    status, out, err = command(prepare, f"--source={source}", f"--out={tmp_path / 'out'}")
    assert status == 0, err
    assert "ham10000 (dataverse layout)" in out
    assert prepared.load(tmp_path / "out").table["has_mask"].sum() == 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dataverse", "download", "out"]


def test_a_damaged_archive_is_one_error(tmp_path, dataverse):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(dataverse, "ham")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"a\.tar: expected a complete ZIP or TAR archive"):
        archives.unpack(path, tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as zipped:
        zipped.writestr("../../outside.txt", "x")
    archives.unpack(tmp_path / "b.zip", tmp_path / "inside" / "y")
    assert not (tmp_path / "outside.txt").exists()


def test_a_png_of_ones_own_is_prepared_without_loss(tmp_path, fake, command):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for name in ("x", "y"):
        (tmp_path / "own" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "own" / name / f"{name}.png")
    status, out, err = command(prepare, f"--source={tmp_path / 'own'}", f"--out={tmp_path / 'out'}")
    assert status == 0, err
    assert "1 same pixels other diagnosis: y (same pixels as x, which is x and not y)" in " ".join(
        out.split()
    )
    np.testing.assert_array_equal(prepared.load(tmp_path / "out").records[0]["image"], pixels)
