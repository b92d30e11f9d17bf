"""Metadata as numbers, against what a hand computes."""

import math

import numpy as np
import pytest

from jaxattn.data import metadata
from jaxattn.data.metadata import Vocabulary
from jaxattn.errors import InputError
from jaxattn.reading import Node

TABLE = {
    "age": np.array([30, np.nan, 50, 70, 200], np.float32),
    "sex": np.array(["male", "female", "", "male", "other"]),
    "localization": np.array(["Back", "face", "unknown", "back", "nose"]),
    "label": np.arange(5),
    "dx_type": np.array(["histo"] * 5),
}
TRAIN = np.arange(4)  # 30, 50 and 70 years: mean 50, variance 800/3
DEVIATION = math.sqrt(800 / 3)


def learnt(*fields: str) -> Vocabulary:
    found = metadata.learn(fields, TABLE, TRAIN)
    assert found is not None
    return found


def test_a_vocabulary_is_that_of_the_training_part():
    found = learnt("age", "sex", "localization")
    assert found.columns["age"] == pytest.approx((50, DEVIATION))
    assert found.columns["sex"] == ("female", "male")
    assert found.columns["localization"] == ("back", "face")
    assert found.sizes == (0, 2, 2)
    assert metadata.learn((), TABLE, TRAIN) is None


def test_encoding_is_what_a_hand_computes():
    table = {
        "age": [50, None, 30.0, math.nan, np.float32(70)],
        "sex": ["male", "Female", "", None, "intersex"],
        "localization": ["face", " BACK ", "n/a", "nose", "face"],
    }
    step, nan = 20 / DEVIATION, math.nan
    wanted = [[0, 1, 1], [nan, 0, 0], [-step, nan, nan], [nan, nan, nan], [step, nan, 1]]
    found = learnt("age", "sex", "localization").encode(table, 5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    swapped = learnt("localization", "age").encode(table, 5)
    np.testing.assert_allclose(swapped, np.array(wanted)[:, [2, 0]], rtol=1e-6)


def test_a_field_that_is_not_given_is_missing():
    found = learnt("age", "sex").encode({"sex": ["male", "female"]}, 2)
    np.testing.assert_array_equal(found, [[math.nan, 1], [math.nan, 0]])
    assert np.isnan(learnt("age", "sex").encode({}, 3)).all()


def test_words_that_the_training_part_lacked_are_counted():
    found = learnt("age", "sex", "localization")
    table = {"sex": ["male", "", "other"], "localization": ["nose", "Nose", "hand"]}
    unknown = found.unknown(table)
    assert unknown == {"sex": {"other": 1}, "localization": {"hand": 1, "nose": 2}}
    assert metadata.describe(unknown) == [
        "sex: 1 values that the run does not know count as missing (other 1)",
        "localization: 3 values that the run does not know count as missing (hand 1, nose 2)",
    ]


def test_equal_ages_are_standardised_to_zero():
    table = {"age": np.array([40.0, 40.0])}
    found = metadata.learn(("age",), table, np.arange(2))
    assert found is not None
    np.testing.assert_array_equal(found.encode({"age": [40, 41]}, 2), [[0], [1]])


def test_a_field_that_the_training_part_lacks_is_refused():
    table = {**TABLE, "localization": np.full(5, "")}
    with pytest.raises(InputError, match=r"metadata.fields: .*'localization', .* all its 4 images"):
        metadata.learn(("age", "localization"), table, TRAIN)


@pytest.mark.parametrize("age", ["old", -1, 131, True])
def test_an_age_that_is_none_is_refused(age):
    with pytest.raises(InputError, match=r"^age: expected"):
        learnt("age").encode({"age": [age]}, 1)


def test_a_vocabulary_survives_json(tmp_path):
    found = learnt("sex", "age", "localization")
    again = Vocabulary.from_json(Node(tmp_path, "metadata", found.to_json()))
    assert again == found
    assert list(again.columns) == ["sex", "age", "localization"]


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        {"label": ["a"]},
        {"dx_type": ["histo"]},
        {"age": [50]},
        {"age": [50, 0]},
        {"age": ["50", 1]},
        {"sex": [1]},
        {"sex": "male"},
    ],
)
def test_a_damaged_vocabulary_is_named(damaged, tmp_path):
    with pytest.raises(InputError, match=r"metadata"):
        Vocabulary.from_json(Node(tmp_path, "metadata", damaged))


def test_a_table_is_read(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(
        "image,age_approx,sex,anatom_site_general,diagnosis\n"
        "A,55,Female,anterior torso,mel\n"
        "B,,unknown,,nv\n"
        "A,55,female,anterior torso,nv\n"
    )
    found = metadata.read(path)
    assert found == {
        "A": {"age": 55.0, "sex": "female", "localization": "anterior torso"},
        "B": {},
    }
    path.write_text("image_id;age\nA;30\n")
    assert metadata.read(path) == {"A": {"age": 30.0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,diagnosis\nA,mel\n", r"expected a column image_id, and some of age, sex"),
        ("age,sex\n30,male\n", r"expected a column image_id"),
        ("image_id,age\nA,-3\n", r"row 2, age: expected a number in \[0, 130\], got '-3'"),
        ("image_id,sex\nA,femal\n", r"row 2, sex: .*did you mean 'female'"),
        ("image_id,age\nA,30\nA,31\n", r"row 3, image_id: expected one row for each image"),
        ("image_id,age\n,30\n", r"row 2, image_id: expected a name"),
    ],
)
def test_a_wrong_table_is_named(text, message, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        metadata.read(path)


def test_records_have_no_other_fields():
    assert metadata.as_table([{"age": 3}, {}])["age"] == [3, None]
    with pytest.raises(InputError, match=r"metadata\[1\]: expected one of age, localization, sex"):
        metadata.as_table([{"age": 3}, {"dx_type": "histo"}])
