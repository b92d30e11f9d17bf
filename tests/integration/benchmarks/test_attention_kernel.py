import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import attention_kernel
from jaxattn.errors import InputError

CASE = attention_kernel.Case("released", (3, 2, 7, 4), 5, "float32")


def taps(case):
    """Multiplications of the convolution, counted one by one."""
    height, width, channels, heads = case.shape
    reach, read = (height, 3) if case.variant == "released" else (1, channels)
    places = list(np.ndindex(height, width))
    meets = sum(
        abs(h - row) <= reach and abs(w - column) <= 1 for h, w in places for row, column in places
    )
    return case.batch * heads * meets * read


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_operations_count_the_taps_that_meet_data(variant):
    case = CASE._replace(variant=variant)
    softmax, weighing = 5 * 5 * 3 * 2 * 4, 5 * 3 * 2 * 7
    wanted = 2 * taps(case) + softmax + weighing
    assert attention_kernel.least_flops(case, "forward") == wanted
    backward = 4 * taps(case) + 4 * 5 * 3 * 2 * 4 + 3 * weighing
    assert attention_kernel.least_flops(case, "both") == wanted + backward


def test_bytes_count_features_and_the_kernel_that_is_read():
    features, read, whole = 5 * 3 * 2 * 7 * 4, 5 * 9 * 4 * 4, 7 * 9 * 4 * 4
    assert attention_kernel.least_bytes(CASE, "forward") == 2 * features + read
    assert attention_kernel.least_bytes(CASE, "both") == 5 * features + 2 * read + whole
    half = CASE._replace(dtype="bfloat16", variant="paper")
    assert attention_kernel.least_bytes(half, "forward") == features + whole


def test_inputs_are_away_from_the_kink():
    inputs = {name: jnp.asarray(each) for name, each in CASE.inputs().items()}
    logits = attention_kernel.ops.released_logits(inputs["x"], inputs["kernel"])
    logits += inputs["other"][:, None, None]
    assert np.abs(logits).min() > 1
    assert (logits > 0).any()
    assert (logits < 0).any()


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_all_ways_compute_the_same(variant, local):
    pytest.importorskip("keras")
    with attention_kernel.Peers(["keras_jax"], "keras_attention") as peers:
        ways, differences = attention_kernel.prepare(CASE._replace(variant=variant), peers)
        assert [set(each) for each in ways.values()] == [{"ours", "definition", "keras_jax"}] * 2
        assert ways["forward"]["keras_jax"].time(1) > 0
    assert set(differences) == {"ours", "keras_jax"}
    assert {len(each) for each in differences.values()} == {3}
    assert max(max(each.values()) for each in differences.values()) < 1e-5


def test_a_way_that_differs_is_found():
    wanted = [np.array([1.0, -4.0]), np.array([2.0, 2.0]), np.array([1.0, 1.0])]
    other = [np.array([1.0, -3.0]), np.array([2.0, 2.0]), np.array([1.0, np.nan])]
    found = attention_kernel.differences({"definition": wanted, "peer": other})
    assert found == {"peer": {"attended": 0.25, "gradient of x": 0.0, "gradient of kernel": np.inf}}


@pytest.mark.parametrize("shape", ["8x8x192", "8x8x192x0", "8x8xax16"])
def test_a_wrong_shape_is_named(shape):
    with pytest.raises(InputError, match=f"--shapes: expected .*, got '{shape}'"):
        attention_kernel.parsed(shape)
