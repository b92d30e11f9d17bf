"""Every layout gives the same rows; what is malformed or missing is named."""

import math
import shutil

import pytest

from jaxattn.data.sources import ham10000
from jaxattn.errors import InputError

IMAGE_IDS = [f"ISIC_000000{i}" for i in range(2, 10)]


def labels(index):
    return [(row.image_id, row.lesion_id, row.dx, row.dx_type) for row in index.images]


def expected_labels(fake):
    keys = ("image_id", "lesion_id", "dx", "dx_type")
    return sorted(tuple(row[key] for key in keys) for row in fake.ROWS)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_kaggle_layout(kaggle, fake):
    index = ham10000.read(kaggle)
    assert index.layout == "kaggle"
    assert labels(index) == expected_labels(fake)
    assert index.problems == index.notes == {}
    rows = {row.image_id: row for row in index.images}
    assert math.isnan(rows["ISIC_0000003"].age)
    melanoma = rows["ISIC_0000004"]
    assert (melanoma.age, melanoma.sex, melanoma.localization) == (0.0, "", "")
    assert rows["ISIC_0000005"].localization == "lower extremity"
    assert all(row.path.name == f"{row.image_id}.jpg" for row in index.images)
    assert all(row.mask is None for row in index.images)


def test_kaggle_archive_holds_the_images_twice(tmp_path, kaggle, fake):
    # In two spellings of the folder, and in a folder inside itself.
    fake.write_kaggle(kaggle, lower=True)
    inner = kaggle / "HAM10000_images_part_1" / "HAM10000_images_part_1"
    shutil.copytree(kaggle / "ham10000_images_part_1", inner)
    index = ham10000.read(kaggle)
    assert labels(index) == expected_labels(fake)
    assert index.problems == {}
    assert len(index.notes["repeated_files"]) == 8 + 4


def test_masks_are_accepted_beside_every_layout(kaggle, isic2018, fake):
    for source in (kaggle, isic2018):
        fake.write_masks(source)
        for row in ham10000.read(source).images:
            assert row.mask.name == f"{row.image_id}_segmentation.png"


def test_dataverse_layout(dataverse, fake):
    index = ham10000.read(dataverse)
    assert index.layout == "dataverse"
    assert labels(index) == expected_labels(fake)
    assert all(row.mask.name == f"{row.image_id}_segmentation.png" for row in index.images)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("spaces", [False, True])
def test_isic2018_layout(tmp_path, fake, flat, spaces):
    fake.write_isic2018(tmp_path, flat=flat, spaces=spaces)
    index = ham10000.read(tmp_path)
    assert index.layout == "isic2018"
    assert labels(index) == expected_labels(fake)
    assert index.problems == {}
    assert all(math.isnan(row.age) and row.sex == "" for row in index.images)


def test_byte_order_mark_windows_newlines_and_blank_lines_are_read(kaggle, fake):
    path = kaggle / "HAM10000_metadata.csv"
    text = path.read_text().replace("\r\n", "\n").replace("\n", "\r\n") + "\r\n\r\n"
    write(path, b"\xef\xbb\xbf" + text.encode())
    assert labels(ham10000.read(kaggle)) == expected_labels(fake)


def test_files_that_archives_leave_behind_are_ignored(kaggle, fake):
    shutil.copytree(kaggle / "HAM10000_images_part_1", kaggle / "__MACOSX" / "x")
    write(kaggle / "HAM10000_images_part_1" / "._ISIC_0000009.jpg", b"")
    write(kaggle / "HAM10000_images_part_1" / "ATTRIBUTION.txt", b"")
    index = ham10000.read(kaggle)
    assert labels(index) == expected_labels(fake)
    assert index.problems == index.notes == {}


HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
ROW = "HAM_1,ISIC_0000002,nv,histo,40,male,back\n"
MALFORMED = {
    "empty": ("", ["an empty file", "lesion_id"]),
    "header only": (HEADER, ["only a header"]),
    "missing column": ("lesion_id,image_id,age\nHAM_1,ISIC_2,3\n", ["row 1", "dx, dx_type"]),
    "bars": ((HEADER + ROW).replace(",", "|"), ["row 1", "the columns lesion_id, image_id"]),
    "a column twice": (
        (HEADER + ROW).replace("localization", "localization,dx").replace("back", "back,mel"),
        ["row 1", "each column once", "got dx twice"],
    ),
    "not UTF-8": (
        (HEADER + ROW.replace("back", "r\u00fccken")).encode("latin-1"),
        ["row 2", "UTF-8"],
    ),
    "UTF-16": ((HEADER + ROW).encode("utf-16"), ["row 1", "UTF-8"]),
    "too few fields": (HEADER + ROW + "HAM_2,ISIC_3,nv\n", ["row 3", "7 fields", "got 3"]),
    "open quote": (HEADER + ROW.replace("back", '"back'), ["row 2", "CSV"]),
    "unknown dx": (HEADER + ROW.replace("nv", "nevus"), ["row 2", "dx", "'nevus'", "akiec, bcc"]),
    "near dx": (HEADER + ROW.replace("nv", "MEL"), ["row 2", "dx", "'MEL'", "mel"]),
    "unknown dx_type": (HEADER + ROW.replace("histo", "guess"), ["row 2", "dx_type", "'guess'"]),
    "age in words": (HEADER + ROW.replace("40", "forty"), ["row 2", "age", "'forty'", "number"]),
    "negative age": (HEADER + ROW.replace("40", "-1"), ["row 2", "age", "'-1'", "[0, 130]"]),
    "infinite age": (HEADER + ROW.replace("40", "inf"), ["row 2", "age", "'inf'", "[0, 130]"]),
    "unknown sex": (HEADER + ROW.replace(",male", ",m"), ["row 2", "sex", "'m'", "female, male"]),
    "no lesion": (HEADER + ROW.replace("HAM_1", ""), ["row 2", "lesion_id", "a name"]),
    "no image_id": (HEADER + ROW.replace("ISIC_0000002", ""), ["row 2", "image_id", "a name"]),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_metadata(kaggle, case):
    content, mentioned = MALFORMED[case]
    path = kaggle / "HAM10000_metadata.csv"
    write(path, content)
    with pytest.raises(InputError) as raised:
        ham10000.read(kaggle)
    for text in [str(path), *mentioned, "expected"]:
        assert text in str(raised.value)
    assert "\n" not in str(raised.value)


ONEHOT = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
MALFORMED_ONEHOT = {
    "two classes": (
        "ISIC_0000002,1.0,1.0,0,0,0,0,0\n",
        ["row 2", "exactly one class", "got MEL, NV"],
    ),
    "no class": ("ISIC_0000002,0.0,0.0,0,0,0,0,0\n", ["row 2", "exactly one class", "got none"]),
    "a probability": ("ISIC_0000002,0.5,0.5,0,0,0,0,0\n", ["row 2", "MEL", "'0.5'", "0 or 1"]),
    "a word": ("ISIC_0000002,yes,0,0,0,0,0,0\n", ["row 2", "MEL", "'yes'", "number"]),
    "no lesion": ("ISIC_7777777,1,0,0,0,0,0,0\n", ["row 2", "ISIC_7777777", "LesionGroupings"]),
}


@pytest.mark.parametrize("case", MALFORMED_ONEHOT)
def test_malformed_onehot_labels(isic2018, case):
    row, mentioned = MALFORMED_ONEHOT[case]
    stem = "ISIC2018_Task3_Training_GroundTruth"
    path = isic2018 / stem / f"{stem}.csv"
    write(path, ONEHOT + row)
    with pytest.raises(InputError) as raised:
        ham10000.read(isic2018)
    for text in [str(path), *mentioned, "expected"]:
        assert text in str(raised.value)


def test_lesion_groupings_are_needed_and_checked(isic2018):
    path = isic2018 / "ISIC2018_Task3_Training_LesionGroupings.csv"
    write(path, path.read_text().replace("histopathology", "a hunch"))
    with pytest.raises(
        InputError, match=r"row 2, diagnosis_confirm_type: expected .*, got 'a hunch'"
    ):
        ham10000.read(isic2018)
    path.unlink()
    with pytest.raises(InputError, match="same lesion"):
        ham10000.read(isic2018)


def test_folders_that_are_no_layout(tmp_path, kaggle, fake):
    with pytest.raises(
        InputError, match="source: expected a folder that holds HAM10000, got .*nowhere"
    ):
        ham10000.read(tmp_path / "nowhere")
    with pytest.raises(
        InputError, match=r"expected a table of labels: HAM10000_metadata\.csv, .*, got none"
    ):
        ham10000.read(tmp_path)
    fake.write_isic2018(kaggle)
    with pytest.raises(InputError, match="expected one of the layouts, got both"):
        ham10000.read(kaggle)


def test_archives_that_are_not_unpacked_are_pointed_out(kaggle):
    for part in (1, 2):
        shutil.rmtree(kaggle / f"HAM10000_images_part_{part}")
        write(kaggle / f"HAM10000_images_part_{part}.zip", b"")
    with pytest.raises(InputError, match=r"unpack HAM10000_images_part_1\.zip, HAM10000"):
        ham10000.read(kaggle)


def test_two_metadata_files_must_agree(kaggle):
    text = (kaggle / "HAM10000_metadata.csv").read_bytes()
    write(kaggle / "HAM10000_metadata", text)
    assert len(ham10000.read(kaggle).images) == 8
    write(kaggle / "HAM10000_metadata", text.replace(b"mel", b"nv"))
    with pytest.raises(InputError, match="different content"):
        ham10000.read(kaggle)


def test_half_unpacked_images_are_named(kaggle):
    shutil.rmtree(kaggle / "HAM10000_images_part_2")
    index = ham10000.read(kaggle)
    assert set(index.problems) == {"missing_image"}
    assert list(index.problems["missing_image"]) == IMAGE_IDS[3:7]
    assert [row.image_id for row in index.images] == [*IMAGE_IDS[:3], IMAGE_IDS[7]]


def test_images_without_a_row_are_named(kaggle, fake):
    write(kaggle / "HAM10000_images_part_1" / "ISIC_9999999.jpg", fake.jpeg(0))
    problems = ham10000.read(kaggle).problems
    assert set(problems) == {"unlabelled_image"}
    assert "ISIC_9999999.jpg has no row" in problems["unlabelled_image"]["ISIC_9999999"]


def test_rows_of_one_image(kaggle):
    path = kaggle / "HAM10000_metadata.csv"
    lines = path.read_text().splitlines()
    write(path, "\n".join([*lines, lines[1], lines[2].replace("bkl", "mel")]))
    index = ham10000.read(kaggle)
    assert index.notes == {"repeated_rows": {"ISIC_0000009": f"{path}, rows 2 and 10"}}
    assert index.problems == {"conflicting_rows": {"ISIC_0000002": f"{path}, rows 3 and 11"}}
    assert [row.image_id for row in index.images] == IMAGE_IDS[1:]


def test_two_images_of_one_name(kaggle, fake):
    write(kaggle / "HAM10000_images_part_2" / "ISIC_0000009.jpg", fake.jpeg(5))
    index = ham10000.read(kaggle)
    assert set(index.problems) == {"conflicting_files"}
    assert "part_2/ISIC_0000009.jpg differ" in index.problems["conflicting_files"]["ISIC_0000009"]
    assert [row.image_id for row in index.images] == IMAGE_IDS[:-1]


def test_masks_that_are_not_there_are_noted(dataverse):
    masks = dataverse / "HAM10000_segmentations_lesion_tschandl"
    mask = masks / "ISIC_0000003_segmentation.png"
    mask.rename(masks / "ISIC_9999999_segmentation.png")
    index = ham10000.read(dataverse)
    assert index.problems == {}
    assert list(index.notes["without_mask"]) == ["ISIC_0000003"]
    assert list(index.notes["mask_without_row"]) == ["ISIC_9999999"]
