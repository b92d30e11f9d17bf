"""A small HAM10000 in each of the layouts in which the real one is handed out."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

ONEHOT = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
CONFIRMED = {
    "histo": "histopathology",
    "follow_up": "serial imaging showing no change",
    "consensus": "single image expert consensus",
    "confocal": "confocal microscopy with consensus dermoscopy",
}
FIELDS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
#: One image of each class, and a second one of the first lesion; not in the order of image_ids.
ROWS = [
    dict(zip(FIELDS, values, strict=True))
    for values in [
        ("HAM_0000001", "ISIC_0000009", "bkl", "histo", "80.0", "male", "scalp"),
        ("HAM_0000001", "ISIC_0000002", "bkl", "histo", "80.0", "male", "scalp"),
        ("HAM_0000003", "ISIC_0000003", "nv", "follow_up", "", "female", "back"),
        ("HAM_0000004", "ISIC_0000004", "mel", "consensus", "0.0", "unknown", "unknown"),
        ("HAM_0000005", "ISIC_0000005", "bcc", "confocal", "45.0", "male", "lower extremity"),
        ("HAM_0000006", "ISIC_0000006", "akiec", "histo", "50.0", "female", "face"),
        ("HAM_0000007", "ISIC_0000007", "vasc", "consensus", "35.0", "male", "trunk"),
        ("HAM_0000008", "ISIC_0000008", "df", "histo", "65.0", "female", "hand"),
    ]
]


def jpeg(seed, width=60, height=45):
    """A smooth picture that differs with its seed, as JPEG."""
    y, x = np.mgrid[:height, :width]
    bands = [127 + 120 * np.sin((seed + c) * 0.7 + x / 25 + y / (20 + c)) for c in range(3)]
    buffer = io.BytesIO()
    Image.fromarray(np.stack(bands, -1).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def disc(seed, width=60, height=45):
    """A lesion mask, boolean (height, width), not symmetric in x and y."""
    y, x = np.mgrid[:height, :width]
    return ((x - width / 3) / (width / 4)) ** 2 + ((y - height / 2) / (height / 9 + seed)) ** 2 < 1


def write_csv(path, header, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", **options) as file:
        out = csv.writer(file)
        out.writerow(header)
        out.writerows(rows)


def write_images(folders, size=(60, 45)):
    """Spreads the images over folders."""
    for i, row in enumerate(ROWS):
        folder = folders[i * len(folders) // len(ROWS)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{row['image_id']}.jpg").write_bytes(jpeg(i, *size))


def write_masks(source, size=(60, 45)):
    folder = source / "HAM10000_segmentations_lesion_tschandl"
    folder.mkdir(parents=True)
    for i, row in enumerate(ROWS):
        Image.fromarray(disc(i, *size)).save(folder / f"{row['image_id']}_segmentation.png")


def write_kaggle(source, lower=False):
    names = ["HAM10000_images_part_1", "HAM10000_images_part_2"]
    write_images([source / (name.lower() if lower else name) for name in names])
    write_csv(source / "HAM10000_metadata.csv", FIELDS, [row.values() for row in ROWS])


def write_dataverse(source):
    write_images([source / "HAM10000_images_part_1", source / "HAM10000_images_part_2"])
    write_masks(source)
    rows = [[*row.values(), "rosendahl"] for row in ROWS]
    write_csv(source / "HAM10000_metadata", [*FIELDS, "dataset"], rows)


def write_isic2018(source, flat=False, spaces=False):
    write_images([source if flat else source / "ISIC2018_Task3_Training_Input"])
    stem = "ISIC2018_Task3_Training_GroundTruth"
    onehot = [
        [row["image_id"], *(f"{float(name.lower() == row['dx'])}" for name in ONEHOT)]
        for row in ROWS
    ]
    write_csv((source if flat else source / stem) / f"{stem}.csv", ["image", *ONEHOT], onehot)
    groups = [[row["image_id"], row["lesion_id"], CONFIRMED[row["dx_type"]]] for row in ROWS]
    header = ["image", "lesion_id", "diagnosis confirm type"]
    if not spaces:
        header = [name.replace(" ", "_") for name in header]
    write_csv(source / "ISIC2018_Task3_Training_LesionGroupings.csv", header, groups)


@pytest.fixture
def fake():
    """This module: the other test modules cannot import it."""
    import sys

    return sys.modules[__name__]


@pytest.fixture
def kaggle(tmp_path):
    """A folder in the Kaggle layout."""
    source = tmp_path / "kaggle"
    source.mkdir()
    write_kaggle(source)
    return source


@pytest.fixture
def dataverse(tmp_path):
    """A folder in the Dataverse layout, with masks."""
    source = tmp_path / "dataverse"
    source.mkdir()
    write_dataverse(source)
    return source


@pytest.fixture
def isic2018(tmp_path):
    """A folder in the ISIC 2018 Task 3 layout."""
    source = tmp_path / "isic2018"
    source.mkdir()
    write_isic2018(source)
    return source
