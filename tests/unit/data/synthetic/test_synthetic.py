import multiprocessing
import pickle

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxattn.data.dataset import COLUMNS
from jaxattn.data.synthetic import dataset as synthetic
from jaxattn.errors import InputError


def _draw(dataset, indices=None):
    examples = [dataset.records[i] for i in (range(len(dataset)) if indices is None else indices)]
    return tuple(np.stack([example[key] for example in examples]) for key in ("image", "mask"))


def _unseen_accuracy(model, features, dataset):
    """Balanced accuracy on lesions that the model was not fitted on."""
    split = GroupShuffleSplit(1, test_size=0.33, random_state=0)
    fit, held_out = next(split.split(features, groups=dataset.table["lesion_id"]))
    model.fit(features[fit], dataset.labels[fit])
    return balanced_accuracy_score(dataset.labels[held_out], model.predict(features[held_out]))


def _radial_spectrum(images, masks):
    """Mean log power of the lesion in rings of equal spatial frequency, of one contrast."""
    grey = images.mean(-1)
    inside = [lesion[mask == 1] for lesion, mask in zip(grey, masks, strict=True)]
    mean, deviation = (np.array([f(lesion) for lesion in inside]) for f in (np.mean, np.std))
    grey = (grey - mean[:, None, None]) / deviation[:, None, None] * masks
    power = np.abs(np.fft.fft2(grey)) ** 2
    frequency = np.fft.fftfreq(grey.shape[1]) * grey.shape[1]
    ring = np.hypot(*np.meshgrid(frequency, frequency)).astype(int)
    rings = [np.log(power[:, ring == r].mean(1)) for r in range(1, grey.shape[1] // 2)]
    return np.stack(rings, -1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_structure_tells_the_classes_apart_and_colour_does_not(seed):
    dataset = synthetic.load(num_images=560, image_size=48, seed=seed)
    images, masks = _draw(dataset)
    colour = np.concatenate((images.mean((1, 2)), images.std((1, 2))), -1)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    by_colour = _unseen_accuracy(regression, colour, dataset)
    forest = RandomForestClassifier(100, random_state=0)
    by_structure = _unseen_accuracy(forest, _radial_spectrum(images, masks), dataset)
    print(f"seed {seed}: {by_colour:.3f} by colour, {by_structure:.3f} by spectrum, chance 0.143")
    assert by_colour < 0.35
    assert by_structure > 0.6


def test_images_are_the_same_in_another_process_and_after_pickling():
    records = synthetic.load(num_images=50, image_size=40, seed=3).records
    copy = pickle.loads(pickle.dumps(records))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.map(records.__getitem__, range(40, 50))
    for i, example in enumerate(elsewhere, start=40):
        for key in ("image", "mask"):
            np.testing.assert_array_equal(records[i][key], example[key])
            np.testing.assert_array_equal(records[i][key], copy[i][key])


@pytest.mark.parametrize("imbalanced", [False, True])
def test_a_larger_data_set_begins_with_the_smaller_one(imbalanced):
    small, large = (synthetic.load(n, 32, seed=1, imbalanced=imbalanced) for n in (100, 330))
    for name in COLUMNS:
        np.testing.assert_array_equal(small.table[name], large.table[name][:100])
    np.testing.assert_array_equal(_draw(small, [7, 99])[0], _draw(large, [7, 99])[0])


def test_another_seed_draws_other_lesions():
    one, other = (synthetic.load(70, 32, seed=seed) for seed in (0, 1))
    difference = np.abs(_draw(one)[0].astype(int) - _draw(other)[0]).mean((1, 2, 3))
    assert difference.min() > 5
    assert (one.table["age"] != other.table["age"]).any()


def test_another_size_shows_the_same_pictures():
    small, large = (synthetic.load(14, size) for size in (64, 192))
    small_images, small_masks = _draw(small)
    large_images, large_masks = _draw(large)
    shrunk = large_images.reshape(14, 64, 3, 64, 3, 3).mean((2, 4))
    # Sensor noise alone is 3 grey levels, hairs and edges lose some sharpness.
    assert np.abs(shrunk - small_images).mean((1, 2, 3)).max() < 6
    shrunk_masks = large_masks.reshape(14, 64, 3, 64, 3).mean((2, 4))
    assert np.abs(shrunk_masks - small_masks).mean((1, 2)).max() < 0.02


@pytest.mark.parametrize("size", [32, 51])
def test_images_and_masks_are_what_a_data_set_promises(size):
    images, masks = _draw(synthetic.load(14, size))
    assert images.shape == (14, size, size, 3)
    assert images.dtype == np.uint8
    assert masks.shape == (14, size, size)
    assert masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 1}


def test_masks_cover_lesions_of_the_same_plausible_size_in_all_classes():
    dataset = synthetic.load(280, 48, seed=5)
    images, masks = _draw(dataset)
    area = masks.mean((1, 2))
    assert area.min() > 0.1
    assert area.max() < 0.65
    per_class = [area[dataset.labels == label].mean() for label in range(7)]
    assert np.ptp(per_class) < 0.1
    # Within the aperture, skin is lighter than the lesion.
    grey, axis = images.mean(-1), np.linspace(-1, 1, 48)
    seen = np.hypot(*np.meshgrid(axis, axis)) < 0.95
    lesion = (grey * masks).sum((1, 2)) / masks.sum((1, 2))
    skin = (grey * (1 - masks) * seen).sum((1, 2)) / ((1 - masks) * seen).sum((1, 2))
    assert np.mean(skin - lesion > 20) > 0.95


def test_images_of_a_lesion_share_its_class_and_patient_and_yet_differ():
    dataset = synthetic.load(280, 48, seed=2)
    images, masks = _draw(dataset)
    lesions, counts = np.unique(dataset.table["lesion_id"], return_counts=True)
    assert set(counts) == {1, 2, 3}
    # Colour of the lesion over the colour of its skin, in which the light cancels.
    colours = [
        np.log(i[m == 1].mean(0) / i[m == 0].mean(0)) for i, m in zip(images, masks, strict=True)
    ]
    pigment = np.stack(colours)
    pigment -= pigment.mean(-1, keepdims=True)
    within = []
    for lesion in lesions[counts > 1]:
        views = np.flatnonzero(dataset.table["lesion_id"] == lesion)
        for column in ("label", "dx_type", "age", "sex", "localization"):
            assert len(np.unique(dataset.table[column][views])) == 1
        first, second = images[views[:2]].astype(int)
        assert np.abs(first - second).mean() > 3
        within.append(np.linalg.norm(pigment[views[0]] - pigment[views[1]]))
    between = np.linalg.norm(pigment - np.roll(pigment, 1, axis=0), axis=-1)
    assert np.median(within) < 0.7 * np.median(between)


def test_classes_are_balanced_and_every_image_and_lesion_is_named():
    dataset = synthetic.load(num_images=703)
    assert dataset.class_names == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert np.bincount(dataset.labels).tolist() == [101, 101, 101, 100, 100, 100, 100]
    assert dataset.table["image_id"][[0, 702]].tolist() == ["SYN_0000000", "SYN_0000702"]
    # 100 images are 14 times (1 + 2 + 1 + 3), and 2: the 57th lesion and one of two of the 58th.
    df = dataset.labels == dataset.class_names.index("df")
    assert len(np.unique(dataset.table["lesion_id"][df])) == 14 * 4 + 2


@pytest.mark.parametrize(
    ("num_images", "counts"),
    [
        # The whole of HAM10000.
        (10015, [327, 514, 1099, 115, 1113, 6705, 142]),
        # 7 of each, then by hand: 6705 / (2k + 1) for nv's k-th image exceeds 1113 / 15 = 74.2 up
        # to k = 44 (75.3). After these 38 follow mel (74.2), nv (6705 / 91 = 73.7), bkl (73.3).
        (90, [7, 7, 8, 7, 8, 46, 7]),
        (7, [1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_imbalance_follows_ham10000(num_images, counts):
    dataset = synthetic.load(num_images, imbalanced=True)
    assert np.bincount(dataset.labels).tolist() == counts


def test_rare_classes_keep_several_lesions():
    dataset = synthetic.load(300, imbalanced=True)
    for label in range(7):
        assert len(np.unique(dataset.table["lesion_id"][dataset.labels == label])) >= 4


def test_table_has_all_columns_with_plausible_values():
    dataset = synthetic.load(2100)
    assert set(dataset.table) == set(COLUMNS)
    for name, dtype in COLUMNS.items():
        assert dataset.table[name].shape == (2100,)
        assert np.issubdtype(dataset.table[name].dtype, dtype)
    age = dataset.table["age"]
    assert 0 < np.isnan(age).mean() < 0.05
    assert np.nanmin(age) >= 5
    assert np.nanmax(age) <= 85
    assert set(dataset.table["sex"]) == {"female", "male", ""}
    assert set(dataset.table["dx_type"]) == {"histo", "follow_up", "consensus", "confocal"}
    assert set(dataset.table["dx_type"][dataset.labels == 4]) == {"histo"}  # melanoma
    assert dataset.table["has_mask"].all()


def test_records_index_like_a_sequence():
    records = synthetic.load(10, 32).records
    assert len(records) == 10
    np.testing.assert_array_equal(records[-1]["image"], records[np.int64(9)]["image"])
    with pytest.raises(IndexError):
        records[10]


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("num_images", 6, "at least 7"),
        ("image_size", 31, "at least 32"),
        ("seed", -1, "at least 0"),
    ],
)
def test_bad_arguments_are_refused(argument, value, expected):
    with pytest.raises(InputError, match=f"dataset.{argument}: expected {expected}, got {value}"):
        synthetic.load(**{argument: value})
