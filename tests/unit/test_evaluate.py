"""What evaluation measures of attention maps; the rest is in test_train.py, which runs it."""

import numpy as np
import pytest

from jaxattn import evaluate, train
from jaxattn.data.crops import Crops


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
    found = evaluate.map_jaccard(built.dataset, Crops(**built.config.crops), rows, given)
    assert found == {"images": 6, "mean": {"same": 1.0, "inverse": 0.0}}


def test_nothing_is_measured_without_maps_or_masks(tiny_config):
    built = train.setup(tiny_config)
    rows = np.arange(4)
    assert evaluate.map_jaccard(built.dataset, Crops(**built.config.crops), rows, {}) == {}
    built.dataset.table["has_mask"][:] = False
    assert (
        evaluate.map_jaccard(
            built.dataset,
            Crops(**built.config.crops),
            rows,
            {"map": np.ones((4, 1, 2, 2), np.float32)},
        )
        == {}
    )


def test_jaccard_of_a_coarse_map_by_hand(tiny_config):
    """A 2 × 2 map, 1 in one corner: bilinear weights w(y) w(x), half and above is inside."""
    built = train.setup(tiny_config)
    mask = built.dataset.records[0]["mask"]
    weight = np.clip((np.arange(32) + 0.5) / 16 - 0.5, 0, 1)
    inside = np.outer(weight, weight) >= 0.5
    wanted = (inside & (mask > 0)).sum() / (inside | (mask > 0)).sum()
    corner = np.array([[[[0.2, 0.2], [0.2, 0.9]]]], np.float32)
    found = evaluate.map_jaccard(
        built.dataset, Crops(**built.config.crops), np.array([0]), {"map": corner}
    )
    assert found["mean"]["map"] == pytest.approx(wanted)
