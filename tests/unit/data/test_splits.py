import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxattn.data import splits
from jaxattn.errors import InputError

metadata = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def random_metadata(rng):
    """Lesions of 1 to 6 images each, at least 8 of each of three classes, images in any order."""
    classes = np.concatenate([np.arange(3).repeat(8), rng.integers(0, 3, rng.integers(0, 60))])
    lesions = np.arange(len(classes)).repeat(rng.integers(1, 7, len(classes)))
    lesions = rng.permutation(lesions)
    return classes[lesions], lesions


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=metadata, seed=st.integers(0, 99), test=st.floats(0.15, 0.5))
def test_no_lesion_is_separated_and_no_image_lost(make_dataset, rng, seed, test):
    labels, lesions = random_metadata(rng)
    dataset = make_dataset(labels, lesions)
    split = splits.make(dataset, "lesion", seed=seed, test=test, validation=0.2)
    sides = [set(lesions[split[part]]) for part in splits.PARTS]
    assert sum(len(side) for side in sides) == len(set(lesions))
    assert sorted(np.concatenate(list(split.values()))) == list(range(len(labels)))
    # By class: scikit-learn's stratified draw is off by less than one lesion in each class.
    _, first = np.unique(lesions, return_index=True)
    drawn = labels[first][list(sides[2])]
    for label in range(3):
        assert abs((drawn == label).sum() - test * (labels[first] == label).sum()) < 1.5


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=metadata, seed=st.integers(0, 99))
def test_datta_tests_on_lesions_with_one_image(make_dataset, rng, seed):
    labels, lesions = random_metadata(rng)
    # Three lesions of one image of each class, so that there is something to draw from.
    labels = np.concatenate([labels, np.arange(3).repeat(7)])
    lesions = np.concatenate([lesions, 1000 + np.arange(21)])
    split = splits.make(make_dataset(labels, lesions), "datta", seed=seed, test=0.3)
    assert (np.bincount(lesions)[lesions[split["test"]]] == 1).all()
    single = (np.bincount(lesions)[lesions] == 1).sum()
    assert len(split["test"]) == np.ceil(0.3 * single)


def test_split_is_of_ids_not_of_their_order(make_dataset):
    labels, lesions = random_metadata(np.random.default_rng(0))
    dataset = make_dataset(labels, lesions)
    order = np.random.default_rng(1).permutation(len(labels))
    table = {name: column[order] for name, column in dataset.table.items()}
    shuffled = dataclasses.replace(dataset, table=table)
    one, other = splits.make(dataset, seed=3), splits.make(shuffled, seed=3)
    for part in splits.PARTS:
        ids = dataset.table["image_id"][one[part]]
        assert set(ids) == set(table["image_id"][other[part]])
    assert set(one["test"]) != set(splits.make(dataset, seed=4)["test"])


def test_written_split_is_read_back(make_dataset, tmp_path):
    dataset = make_dataset(np.arange(3).repeat(20), np.arange(60) // 2)
    split = splits.make(dataset, validation=0.2)
    splits.write(tmp_path / "split.csv", split, dataset)
    again = splits.make(dataset, "file", file=str(tmp_path / "split.csv"))
    for part in splits.PARTS:
        np.testing.assert_array_equal(split[part], again[part])


FILES = {
    "header": (
        "image,split\nIMG_00000,train\n",
        "row 1: expected the columns image_id, got image, split",
    ),
    "part": (
        "image_id,split\nIMG_00000,trian\n",
        "row 2, split: expected one of test, train, val, validation (did you mean 'train'?), "
        "got 'trian'",
    ),
    "image": (
        "image_id,split\nIMG_99999,train\n",
        "row 2, image_id: expected an image of noise, got 'IMG_99999'",
    ),
    "twice": (
        "image_id,split\nIMG_00000,train\nIMG_00000,test\n",
        "row 3, image_id: expected each image once, got 'IMG_00000'",
    ),
    "lesion": (
        "image_id,split\nIMG_00000,train\nIMG_00001,test\nIMG_00002,train\n",
        "images of lesion LES_0 in one part, got some in the train and some in the test part",
    ),
    "empty": ("image_id,split\nIMG_00000,train\n", "test part: expected images, got none"),
}


@pytest.mark.parametrize("case", FILES)
def test_wrong_file_is_one_clear_error(make_dataset, tmp_path, case):
    text, message = FILES[case]
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        splits.make(make_dataset([0, 0, 1, 2], [0, 0, 1, 2]), "file", file=str(path))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "lesions"}, "did you mean 'lesion'"),
        ({"test": 1.5}, "split.test: expected a fraction in [0, 1), got 1.5"),
        ({"test": 0.0}, "split.test: expected a fraction"),
        ({"validation": -0.1}, "split.validation: expected a fraction in [0, 1), got -0.1"),
        ({"strategy": "file"}, "split.file: expected a CSV of image_id and split, got nothing"),
        ({"strategy": "file", "file": "nowhere.csv"}, "nowhere.csv: "),
        ({"test": 0.1}, "too few lesions of noise (a 2, b 2, c 1)"),
    ],
)
def test_wrong_argument_is_one_clear_error(make_dataset, arguments, message):
    with pytest.raises(InputError) as error:
        splits.make(make_dataset([0, 0, 1, 1, 2]), **arguments)
    assert message in str(error.value)
