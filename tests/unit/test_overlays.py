import numpy as np
import pytest

from jaxattn import overlays
from jaxattn.errors import InputError


def hot(row, column, size=4, heads=2):
    maps = np.zeros((heads, size, size), np.float32)
    maps[:, row, column] = 0.5
    return maps


def test_heads_are_summed():
    maps = np.array([[[1, 2], [3, 4]], [[10, 20], [30, 40]]], np.float32)
    np.testing.assert_array_equal(overlays.aggregate(maps), [[11, 22], [33, 44]])


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 3), (1, 2), (3, 1)])
def test_a_hot_position_stays_at_its_place(row, column):
    heat = overlays.heatmap(hot(row, column), 32, 48)
    assert heat.shape == (32, 48)
    assert (heat.min(), heat.max()) == (0, 1)
    at = np.argwhere(heat > 0.9)
    # Position (row, column) of a 4×4 map covers 8 rows and 12 columns of the image.
    assert (at // (8, 12) == (row, column)).all()
    distant = heat.reshape(4, 8, 4, 12).max(axis=(1, 3))[(row + 2) % 4, (column + 2) % 4]
    assert distant < 0.15


def test_upsampling_a_ramp_keeps_its_middle():
    # Bicubic interpolation reproduces straight lines away from borders: column x of 32 lies at
    # (x + .5) / 8 - .5 of the 4 columns.
    ramp = np.broadcast_to(np.arange(4, dtype=np.float32), (1, 4, 4))
    heat = overlays.heatmap(ramp, 4, 32)
    steps = np.diff(heat[2, 13:19])
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-3)
    assert heat[2, 15] + heat[2, 16] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 64, -3.0, 1e6])
def test_a_constant_map_is_blue_everywhere(value):
    maps = np.full((16, 8, 8), value, np.float32)
    assert not overlays.heatmap(maps, 99, 99).any()
    drawn = overlays.overlay(np.zeros((99, 99, 3), np.uint8), maps)
    assert drawn.dtype == np.uint8
    # Jet starts at (0, 0, .5) of 255; half of it over black.
    np.testing.assert_array_equal(drawn, np.broadcast_to([0, 0, 64], (99, 99, 3)))


def test_overlay_is_half_jet_and_half_image():
    image = np.full((6, 4, 3), 100, np.uint8)
    maps = np.zeros((1, 6, 4), np.float32)  # the size of the image: nothing to interpolate
    maps[0, 2, 1] = 3
    drawn = overlays.overlay(image, maps)
    # Jet ends at (.5, 0, 0), 127.5 of 255, which matplotlib turns into 127.
    np.testing.assert_array_equal(drawn[2, 1], np.rint([(127 + 100) / 2, 50, 50]))
    np.testing.assert_array_equal(drawn[0, 0], np.rint([50, 50, (127 + 100) / 2]))
    assert (drawn == drawn[0, 0]).all(axis=2).sum() == 23
    np.testing.assert_array_equal(overlays.overlay(image, maps, alpha=0.0), image)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.zeros((4, 4), np.float32), r"expected shape \(K, h, w\), got \(4, 4\)"),
        (np.full((1, 2, 2), np.nan, np.float32), "at 4 of 4 positions"),
    ],
)
def test_bad_maps_are_named(maps, message):
    check = getattr(overlays.aggregate, "__wrapped__", overlays.aggregate)
    with pytest.raises(InputError, match=message):
        check(maps)


def test_peak_is_one_without_preference_and_the_number_of_positions_for_a_point():
    assert overlays.peak(np.full((3, 4, 4), 0.2, np.float32)) == pytest.approx(1)
    assert overlays.peak(hot(1, 1)) == pytest.approx(16)
    assert np.isnan(overlays.peak(np.zeros((1, 4, 4), np.float32)))


def test_outline_is_the_border_inside_the_mask():
    image = np.zeros((7, 7, 3), np.uint8)
    mask = np.zeros((7, 7), np.uint8)
    mask[1:6, 1:6] = 1
    drawn = overlays.outline(image, mask, rgb=(9, 8, 7), width=1)
    # A 5×5 square has 16 border pixels.
    assert (drawn == (9, 8, 7)).all(axis=2).sum() == 16
    assert not drawn[2:5, 2:5].any()
    assert not drawn[0].any()
    assert not image.any()


def test_outline_of_a_mask_over_the_whole_image_is_empty():
    image = np.zeros((5, 5, 3), np.uint8)
    assert not overlays.outline(image, np.ones((5, 5), np.uint8)).any()


def test_cases_are_the_most_confident_hits_then_misses_of_each_class():
    labels = np.array([0, 0, 0, 1, 1, 0, 1])
    sure = np.array([0.9, 0.6, 0.9, 0.8, 0.7, 0.8, 0.95])
    predictions = np.array([0, 0, 0, 1, 0, 1, 0])
    probabilities = np.stack([1 - sure, sure], axis=1)
    probabilities[predictions == 0] = probabilities[predictions == 0][:, ::-1]
    chosen = overlays.select_cases(labels, probabilities, predictions, per_group=2)
    # Hits of 0: 0 and 2 tie, index decides; hits of 1: 3; misses of 0: 5; misses of 1: 6 before 4.
    assert chosen.tolist() == [0, 2, 3, 5, 6, 4]
    fewer = overlays.select_cases(labels, probabilities, predictions, per_group=1)
    assert fewer.tolist() == [0, 3, 5, 6]


def test_cases_are_ranked_by_the_probability_of_the_predicted_class():
    labels = np.zeros(3, int)
    probabilities = np.array([[0.1, 0.9], [0.3, 0.7], [0.2, 0.8]])
    chosen = overlays.select_cases(labels, probabilities, labels)
    assert chosen.tolist() == [1, 2]  # all are called 0, though 1 is more probable
