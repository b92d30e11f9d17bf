import csv

import numpy as np
import pytest

from jaxattn import run_dir
from jaxattn.data import leaks, splits
from jaxattn.errors import InputError


@pytest.fixture
def lesions(make_dataset):
    """10 nv and 6 mel; two images of each lesion."""
    return make_dataset([0] * 10 + [1] * 6, np.arange(16) // 2, names=("nv", "mel"))


def test_copies_are_koeflers_moves_of_what_is_not_nv(lesions):
    copied = leaks.copies(lesions, "koefler")
    assert len(copied) == len(copied.records) == 10 + 6 * 6
    assert np.bincount(copied.labels).tolist() == [10, 36]
    assert len(set(copied.table["image_id"])) == 46
    rows = np.flatnonzero(copied.table["source"] == "IMG_00012").tolist()
    assert copied.table["image_id"][rows].tolist() == [
        "IMG_00012",
        "IMG_00012+clockwise",
        "IMG_00012+counterclockwise",
        "IMG_00012+half_turn",
        "IMG_00012+top_bottom",
        "IMG_00012+left_right",
    ]
    assert set(copied.table["lesion_id"][rows]) == {"LES_6"}
    for part in ("image", "mask"):
        same, right, left, half, vertical, horizontal = (copied.records[i][part] for i in rows)
        np.testing.assert_array_equal(same, lesions.records[12][part])
        # The top row becomes the right column, the left one, the last row read backwards, ...
        np.testing.assert_array_equal(right[:, -1], same[0])
        np.testing.assert_array_equal(right[0, ::-1], same[:, 0])
        np.testing.assert_array_equal(left[::-1, 0], same[0])
        np.testing.assert_array_equal(left[0], same[:, -1])
        np.testing.assert_array_equal(half[-1, ::-1], same[0])
        np.testing.assert_array_equal(half[::-1, 0], same[:, -1])
        np.testing.assert_array_equal(vertical[-1], same[0])
        np.testing.assert_array_equal(horizontal[:, -1], same[:, 0])


def test_the_image_and_the_lesion_in_training_are_counted(make_dataset):
    dataset = make_dataset([0] * 8, [0, 0, 1, 2, 3, 3, 4, 5])
    split = {"train": np.array([0, 2, 4]), "test": np.array([1, 3, 5, 6, 7])}
    assert leaks.measure(dataset, split) == {"lesion": 0.4, "image": 0.0}
    split["test"] = np.array([1, 2, 3, 4])
    assert leaks.measure(dataset, split) == {"lesion": 0.75, "image": 0.5}


def test_copies_in_training_are_counted_as_images(lesions):
    copied = leaks.copies(lesions, "koefler")
    train = np.flatnonzero(copied.table["image_id"] == "IMG_00012")
    test = np.flatnonzero(np.isin(copied.table["source"], ["IMG_00012", "IMG_00013"]))
    test = np.setdiff1d(test, train)  # 5 copies of the one and 6 of the other, of one lesion
    measured = leaks.measure(copied, {"train": train, "test": test})
    assert measured == {"lesion": 1.0, "image": 5 / 11}


def test_koeflers_split_is_of_ids_and_by_class(lesions):
    copied = leaks.copies(lesions, "koefler")
    split = splits.make(copied, leak="koefler")
    assert len(split["test"]) == np.ceil(0.33 * 46)
    assert sorted([*split["train"], *split["test"]]) == list(range(46))
    np.testing.assert_array_equal(split["validation"], split["test"])
    drawn = np.bincount(copied.labels[split["test"]])
    assert abs(drawn - 0.33 * np.array([10, 36])).max() < 1.5  # ceil(15.18) images


def test_selection_on_the_test_part_keeps_all_else_for_training(lesions):
    split = splits.make(lesions, test=0.3, validation=0.2, leak="select_on_test")
    np.testing.assert_array_equal(split["validation"], split["test"])
    assert sorted([*split["train"], *split["test"]]) == list(range(16))
    honest = splits.make(lesions, test=0.3, validation=0.4)
    np.testing.assert_array_equal(split["test"], honest["test"])
    assert leaks.measure(lesions, split) == {"lesion": 0.0, "image": 0.0}


@pytest.mark.parametrize("leak", ["select_on_test", "koefler"])
def test_a_written_leaky_split_says_so_and_is_read_back(lesions, tmp_path, leak):
    dataset = leaks.copies(lesions, leak)
    split = splits.make(dataset, test=0.3, leak=leak)
    path = tmp_path / run_dir.SPLIT
    run_dir.record_split(tmp_path, split, dataset, leak)
    run_dir.record_split(tmp_path, split, dataset, leak)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["leak"] for row in rows} == {leak}
    assert len(rows) == len(dataset)
    if leak == "select_on_test":
        again = splits.make(dataset, "file", file=str(path), leak=leak)
        for part in splits.PARTS:
            np.testing.assert_array_equal(again[part], split[part])
    with pytest.raises(InputError, match=f"leak: expected '', as in split.leak, got '{leak}'"):
        splits.make(dataset, "file", file=str(path))


def test_a_lesion_on_two_sides_stays_an_error(lesions, tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("image_id,split\nIMG_00000,train\nIMG_00001,test\n")
    with pytest.raises(
        InputError,
        match="LES_0 in one part, got some in the train and some",
    ):
        splits.make(lesions, "file", file=str(path), leak="select_on_test")


def test_wrong_leak_is_one_clear_error(make_dataset):
    with pytest.raises(InputError, match="split.leak: .*did you mean 'koefler'.*got 'kofler'"):
        splits.make(make_dataset([0, 1]), leak="kofler")
    with pytest.raises(
        InputError, match="split.leak: expected .*class nv for 'koefler', got noise"
    ):
        leaks.copies(make_dataset([0, 1]), "koefler")
