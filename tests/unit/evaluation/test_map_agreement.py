"""Agreement of attention maps and lesion masks."""

import numpy as np
import pytest

from jaxattn import train
from jaxattn.data.crops import Crops
from jaxattn.evaluation import map_agreement


@pytest.mark.parametrize("crop", [0, 20])
def test_jaccard_of_maps_that_are_the_masks(tiny_config, crop):
    """The masks themselves agree fully, two heads or one; their inverse, not at all."""
    if crop:
        tiny_config.crops.update(strategy="random", size=crop)
    built = train.setup(tiny_config)
    built.dataset.table["has_mask"][3] = False
    rows = np.arange(2, 9)
    masks = np.stack([built.dataset.records[row]["mask"] for row in rows]).astype(np.float32)
    if crop:
        masks = masks[:, 6:26, 6:26]
    given = {"same": np.stack([masks, 3 * masks], 1), "inverse": 0.7 - 0.2 * masks[:, None]}
    found = map_agreement.measure(built.dataset, Crops(**built.config.crops), rows, given, 100)
    assert found["images"] == 6
    assert found["lesion_area"] == pytest.approx(np.delete(masks, 1, 0).mean())
    measured = {n: [row[m] for m in map_agreement.MEASURES] for n, row in found["maps"].items()}
    assert measured["same"] == [1, 1, 1]
    assert measured["inverse"][:2] == [0, 0]
    assert found["maps"]["same"]["intervals"]["pointing_game"] == [1, 1]
    weights = given["inverse"][:, 0]
    shares = (weights * masks).sum((1, 2)) / weights.sum((1, 2))
    assert measured["inverse"][2] == pytest.approx(np.delete(shares, 1).mean(), rel=1e-5)


def test_nothing_is_measured_without_maps_or_masks(tiny_config):
    built = train.setup(tiny_config)
    rows = np.arange(4)
    crops = Crops(**built.config.crops)
    assert map_agreement.measure(built.dataset, crops, rows, {}) == {}
    built.dataset.table["has_mask"][:] = False
    given = {"map": np.ones((4, 1, 2, 2), np.float32)}
    assert map_agreement.measure(built.dataset, crops, rows, given) == {}


def test_jaccard_of_a_coarse_map_by_hand(tiny_config):
    """A 2 × 2 map, 1 in one corner: bilinear weights w(y) w(x), half and above is inside."""
    built = train.setup(tiny_config)
    mask = built.dataset.records[0]["mask"]
    weight = np.clip((np.arange(32) + 0.5) / 16 - 0.5, 0, 1)
    inside = np.outer(weight, weight) >= 0.5
    wanted = (inside & (mask > 0)).sum() / (inside | (mask > 0)).sum()
    corner = np.array([[[[0.2, 0.2], [0.2, 0.9]]]], np.float32)
    crops = Crops(**built.config.crops)
    found = map_agreement.measure(built.dataset, crops, np.array([0]), {"map": corner})
    assert found["maps"]["map"]["jaccard"] == pytest.approx(wanted)
    assert found["maps"]["map"]["intervals"]["jaccard"] is None  # of one lesion


def test_a_peak_inside_the_lesion_fails_by_jaccard_alone():
    """All heat on one of 16 positions, inside a lesion of 6 x 6 of 16 x 16 pixels."""
    mask = np.zeros((16, 16), np.uint8)
    mask[4:10, 4:10] = 1
    peaked = np.zeros((1, 16, 16), np.float32)
    peaked[0, 5, 6] = 1.0
    found = map_agreement.of_map(peaked, mask)
    assert found == {"jaccard": 1 / 36, "pointing_game": 1, "share_inside": 1}


def test_a_flat_map_scores_as_chance_does():
    mask = np.zeros((8, 8), np.uint8)
    mask[:2, :4] = 1
    for value in (0.0, 0.5):
        found = map_agreement.of_map(np.full((2, 4, 4), value, np.float32), mask)
        assert found == {"jaccard": 0, "pointing_game": 1 / 8, "share_inside": 1 / 8}


def test_several_maxima_share_the_pointing_game():
    mask = np.array([[1, 0], [0, 0]], np.uint8)
    found = map_agreement.of_map(np.array([[[1, 1], [0, 0]]], np.float32), mask)
    assert found["pointing_game"] == 0.5
    assert found["share_inside"] == 0.5
