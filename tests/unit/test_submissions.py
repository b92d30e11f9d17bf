"""The official formats, against the columns that the challenges' pages and files have."""

import csv
import io
import json

import numpy as np
import pytest

from jaxattn.errors import InputError
from jaxattn.submissions import FORMATS, Row

HAM = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
SCORES = np.array([0.01, 0.02, 0.03, 0.04, 0.2, 0.6, 0.1], np.float32)
ROW = Row("ISIC_1", "a/ISIC_1.jpg", SCORES[::-1], SCORES, "nv")
BAD = Row("ISIC_2", "ISIC_2.jpg", error="ISIC_2.jpg: expected an image, got an empty file")


def written(name, classes=HAM, rows=(ROW, BAD)):
    made = FORMATS[name](classes)
    return made.header + "".join(made.line(row) for row in rows)


@pytest.mark.parametrize(
    ("name", "header", "values"),
    [
        ("isic2017", "image_id,melanoma,seborrheic_keratosis", [0.2, 0.03]),
        (
            "isic2018",
            "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC",
            [0.2, 0.6, 0.02, 0.01, 0.03, 0.04, 0.1],
        ),
        (
            "isic2019",
            "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK",
            [0.2, 0.6, 0.02, 0.01, 0.03, 0.04, 0.1, 0.0, 0.0],
        ),
    ],
)
def test_challenges(name, header, values):
    lines = written(name).splitlines()
    assert lines[0] == header
    assert len(lines) == 2  # an image that cannot be read has no line
    image, *found = lines[1].split(",")
    assert image == "ISIC_1"
    np.testing.assert_allclose([float(each) for each in found], values, rtol=1e-6)
    assert all("." in each or "e" in each for each in found)  # the scorer refuses integers


def test_classes_that_share_a_column_are_added():
    classes = ("ak", "akiec", "Melanoma")
    row = ROW._replace(scores=[0.25, 0.5, 0.25])
    assert written("isic2019", classes, [row]).splitlines()[1] == (
        "ISIC_1,0.25,0.0,0.0,0.75,0.0,0.0,0.0,0.0,0.0"
    )


@pytest.mark.parametrize(
    ("name", "classes"), [("isic2018", ("mel", "scc")), ("isic2017", ("nv", "df")), ("isic", HAM)]
)
def test_classes_without_a_column_are_refused(name, classes):
    with pytest.raises(InputError, match="--format"):
        written(name, classes)


def test_csv():
    header, first, second = csv.reader(io.StringIO(written("csv")))
    assert header == ["image_id", "path", *(f"p_{name}" for name in HAM), "prediction", "error"]
    assert first[:2] == ["ISIC_1", "a/ISIC_1.jpg"]
    assert [np.float32(each) for each in first[2:9]] == SCORES[::-1].tolist()  # to the bit
    assert first[-2:] == ["nv", ""]
    assert second == ["ISIC_2", "ISIC_2.jpg", *[""] * 8, BAD.error]


def test_json_lines():
    first, second = map(json.loads, written("jsonl").splitlines())
    assert list(first["probabilities"]) == list(HAM)
    assert [np.float32(each) for each in first["probabilities"].values()] == SCORES[::-1].tolist()
    assert first["prediction"] == "nv"
    assert second == {"image_id": "ISIC_2", "path": "ISIC_2.jpg", "error": BAD.error}
