import pickle

import numpy as np
import pytest
from absl import logging

from jaxattn.config import base
from jaxattn.data import classes, load, splits
from jaxattn.errors import InputError

KOEFLER = ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df")


@pytest.fixture
def dataset(make_dataset):
    """Labels 0 1 2 3 0 1 of the classes a b c d."""
    return make_dataset([0, 1, 2, 3, 0, 1], [0, 0, 1, 2, 3, 3], names=("a", "b", "c", "d"))


@pytest.mark.parametrize(
    ("given", "names", "rows", "labels"),
    [
        (("d", "a"), ("d", "a"), [0, 3, 4], [1, 0, 1]),
        (("x=a+c", "b"), ("x", "b"), [0, 1, 2, 4, 5], [0, 1, 0, 0, 1]),
        (("b", "rest = a + c + d"), ("b", "rest"), [0, 1, 2, 3, 4, 5], [1, 0, 1, 1, 1, 0]),
        (("b=a", "a=b"), ("b", "a"), [0, 1, 4, 5], [0, 1, 0, 1]),
        (("d", "c", "b", "a"), ("d", "c", "b", "a"), [0, 1, 2, 3, 4, 5], [3, 2, 1, 0, 3, 2]),
    ],
)
def test_classes_by_hand(dataset, given, names, rows, labels):
    selected = classes.select(dataset, given)
    assert selected.class_names == names
    assert selected.labels.tolist() == labels
    assert selected.labels.dtype == np.int32
    assert len(selected) == len(selected.records) == len(rows)
    for name in ("image_id", "lesion_id"):
        assert selected.table[name].tolist() == dataset.table[name][rows].tolist()
    for i, row in enumerate(rows):
        for part in ("image", "mask"):
            np.testing.assert_array_equal(selected.records[i][part], dataset.records[row][part])


def test_no_classes_given_is_the_data_set_itself(dataset):
    assert classes.select(dataset, ()) is dataset


def test_what_is_left_out_is_said(dataset, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    classes.select(dataset, ("x=a+c", "d"))
    assert said == ["noise: x 3, d 1; left out: b 2"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("aa", "b"),
            "dataset.classes: expected one of a, b, c, d, e (did you mean 'a'?), got 'aa'",
        ),
        (("x=a+zz", "b"), "dataset.classes: expected one of a, b, c, d, e, got 'zz'"),
        (("a", "b", "a"), "dataset.classes: expected a new name, got 'a'"),
        (("a", "x=b+a"), "dataset.classes: expected each class once, got 'a' twice"),
        (("a", "x="), "dataset.classes: expected one of a, b, c, d, e, got ''"),
        (("=a", "b"), "dataset.classes: expected a new name, got '=a'"),
        (("a+b", "c"), "got 'a+b'"),
        (("a",), "dataset.classes: expected two or more classes, got ('a',)"),
        (("a", "e"), "expected classes with images in noise, got 'e'"),
    ],
)
def test_wrong_classes_are_one_clear_error(make_dataset, given, message):
    dataset = make_dataset([0, 1, 2, 3], names=("a", "b", "c", "d", "e"))
    with pytest.raises(InputError) as error:
        classes.select(dataset, given)
    assert message in str(error.value)


def test_one_string_is_no_tuple():
    with pytest.raises(InputError, match="dataset.classes: expected a tuple of classes, got 'nv'"):
        classes.parse("nv", ("nv", "mel"))


def test_a_config_chooses_classes_of_any_data_set():
    config = base().dataset
    config.num_images, config.image_size = 70, 64
    whole = load.load(config)
    config.classes = KOEFLER
    ordered = load.load(config)
    assert ordered.class_names == KOEFLER
    assert [KOEFLER[label] for label in ordered.labels] == [
        whole.class_names[label] for label in whole.labels
    ]
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(ordered.records))[3]["image"], whole.records[3]["image"]
    )
    config.classes = ("malignant=mel+bcc", "benign=nv+bkl+df")
    binary = load.load(config)
    assert np.bincount(binary.labels).tolist() == [20, 30]
    split = splits.make(binary, seed=1, test=0.3, validation=0.2)
    assert sum(len(rows) for rows in split.values()) == 50
