import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import attention_kernel
from jaxattn.errors import InputError

CASE = attention_kernel.Case("released", (3, 2, 7, 4), 5, "float32")


def taps(case):
    """Multiplications of the convolution, counted one by one."""
    height, width, channels, heads = case.shape
    reach, read = (height, 3) if case.semantics == "released" else (1, channels)
    places = list(np.ndindex(height, width))
    meets = sum(
        abs(h - row) <= reach and abs(w - column) <= 1 for h, w in places for row, column in places
    )
    return case.batch * heads * meets * read


@pytest.mark.parametrize("semantics", ["released", "paper"])
def test_operations_are_those_of_the_taps_that_meet_data(semantics):
    case = CASE._replace(semantics=semantics)
    softmax, weighing = 5 * 5 * 3 * 2 * 4, 5 * 3 * 2 * 7
    wanted = 2 * taps(case) + softmax + weighing
    assert attention_kernel.least_flops(case, "forward") == wanted
    backward = 4 * taps(case) + 4 * 5 * 3 * 2 * 4 + 3 * weighing
    assert attention_kernel.least_flops(case, "both") == wanted + backward


def test_bytes_are_those_of_features_and_of_the_kernel_that_is_read():
    features, read, whole = 5 * 3 * 2 * 7 * 4, 5 * 9 * 4 * 4, 7 * 9 * 4 * 4
    assert attention_kernel.least_bytes(CASE, "forward") == 2 * features + read
    assert attention_kernel.least_bytes(CASE, "both") == 5 * features + 2 * read + whole
    half = CASE._replace(dtype="bfloat16", semantics="paper")
    assert attention_kernel.least_bytes(half, "forward") == features + whole


def test_inputs_keep_clear_of_the_kink():
    inputs = {name: jnp.asarray(each) for name, each in CASE.inputs().items()}
    logits = attention_kernel.ops.released_logits(inputs["x"], inputs["kernel"])
    logits += inputs["other"][:, None, None]
    assert np.abs(logits).min() > 1
    assert (logits > 0).any()
    assert (logits < 0).any()


@pytest.mark.parametrize("semantics", ["released", "paper"])
def test_all_ways_compute_the_same(semantics):
    pytest.importorskip("keras")
    ready = attention_kernel.ready(CASE._replace(semantics=semantics), "not here")
    assert set(ready.differences) == {"ours", "keras_jax"}
    assert max(max(each.values()) for each in ready.differences.values()) < 1e-5
    assert ready.skipped == {"keras_tensorflow": "not here"}


def test_a_way_that_differs_is_found():
    wanted = [np.array([1.0, -4.0]), np.array([2.0, 2.0]), np.array([1.0, 1.0])]
    other = [np.array([1.0, -3.0]), np.array([2.0, 2.0]), np.array([1.0, np.nan])]
    found = attention_kernel.differences({"definition": wanted, "peer": other})
    assert found == {"peer": {"attended": 0.25, "gradient of x": 0.0, "gradient of kernel": np.inf}}


def row(tensorflow=9.0, **changes):
    speedup = {"definition": 30.0, "keras_jax": 30.0, "keras_tensorflow": tensorflow}
    given = {"pass": "both", "semantics": "released", "shape": [28, 28, 512, 16], "batch": 256}
    given |= {"dtype": "float32"}
    return {**given, "of_limit": 0.81, "speedup": speedup, **changes}


def goals(row, platform):
    found = attention_kernel.goals({"platform": platform, "rows": [row]})
    return [(goal.what, goal.reached) for goal in found]


def test_goals_are_judged_by_the_slowest_ratio_of_keras():
    assert goals(row(), "cpu") == [("10× Keras", False)]
    assert goals(row(tensorflow=10.0), "cpu") == [("10× Keras", True)]
    assert goals(row(semantics="paper"), "cpu") == []
    assert goals(row(**{"pass": "forward"}), "cpu") == []
    on_gpu = goals(row(tensorflow=60.0), "gpu")
    assert on_gpu == [("50× Keras", False), ("80% of the limit", True)]
    assert goals(row(semantics="paper"), "gpu") == [("80% of the limit", True)]
    assert goals(row(semantics="paper", batch=64), "gpu") == []


def test_rows_are_by_batch_shape_and_pass():
    rows = [row(batch=16), row(batch=16, **{"pass": "forward"}), row(shape=[8, 8, 192, 16])]
    rows += [row(batch=16, shape=[3, 2, 7, 4]), row(batch=16, semantics="paper")]
    assert attention_kernel.ordered(rows) == [rows[each] for each in (1, 0, 4, 3, 2)]


@pytest.mark.parametrize("shape", ["8x8x192", "8x8x192x0", "8x8xax16"])
def test_a_shape_that_is_none_is_named(shape):
    with pytest.raises(InputError, match=f"--shapes: '{shape}' given, .* wanted"):
        attention_kernel.parsed(shape)
