import numpy as np
import pytest

from jaxattn.errors import InputError
from jaxattn.evaluation import predictions
from jaxattn.evaluation.predictions import Predictions


def test_what_is_written_is_read_back_bit_for_bit(tmp_path, make_dataset):
    rng = np.random.default_rng(0)
    dataset = make_dataset(rng.integers(0, 3, 50), lesions=rng.integers(0, 20, 50))
    dataset.table["age"][:] = rng.choice([np.nan, 35.0, 47.5], 50)
    dataset.table["sex"] = rng.choice(["", "female", 'a "quoted", name'], 50)
    rows = rng.permutation(50)[:40]
    # The hardest floats: neighbours, the smallest, and any bits.
    scores = rng.integers(0, 0x3F800000, (40, 3), np.int32).view(np.float32)
    scores[0] = np.nextafter(np.float32(0.1), np.float32([0, 1, 2]))
    found = predictions.of_dataset(dataset, rows, scores, scores.argmax(1))
    predictions.write(tmp_path / "p.csv", found)
    again = predictions.read(tmp_path / "p.csv")
    assert again.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(again.probabilities.astype(np.float32), scores)
    for name in ("image_ids", "lesion_ids", "labels", "predictions", "lesions", "probabilities"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name), name)
    assert set(again.metadata) == {"age", "sex", "localization", "dx_type"}
    for name, column in found.metadata.items():
        np.testing.assert_array_equal(again.metadata[name], column)
    assert set(found.metadata["age"]) == {"", "35", "47.5"}


def test_lesions_are_numbered_in_order_and_unknown_ones_are_of_their_own():
    found = Predictions(
        ("a", "b"),
        np.array(["1", "2", "3", "4", "5"]),
        np.array(["x", "", "b", "x", ""]),
        np.zeros(5, int),
        np.zeros(5, int),
        np.full((5, 2), 0.5),
    )
    assert found.lesions.tolist() == [0, 1, 2, 0, 3]
    assert found.take(np.array([2, 0])).lesions.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image_id,label\n", "expected columns"),
        ("image_id,lesion_id,label,p_a,p_b\ni,l,c,0.5,0.5\n", "expected one of a, b, got 'c'"),
        ("image_id,lesion_id,label,p_a,p_b\ni,l,a,x,0.5\n", "expected probabilities"),
    ],
)
def test_a_wrong_file_is_an_input_error(tmp_path, content, message):
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        predictions.read(tmp_path / "p.csv")
