"""The comparison with Keras finds differences, and only these."""

import json

import numpy as np
import pytest

keras = pytest.importorskip("keras")
if keras.backend.backend() != "jax":
    pytest.skip(f"Keras runs on {keras.backend.backend()}, not on JAX", allow_module_level=True)
parity = pytest.importorskip("references.keras_parity")

from benchmarks.parity import add  # noqa: E402
from references import keras_ties, keras_weights  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
#: The network that compiles fastest, at the smallest size it accepts.
NAME, SIZE = "koefler_cnn_sa", 75
BOUNDS = parity.BOUNDS


class Drawn:
    """The model in Keras and in Flax, with weights away from kinks and ties, and our results."""

    def __init__(self):
        self.pair = parity.make_pair(NAME, SIZE)
        self.images = self.pair.images(1, seed=0)
        keras_weights.draw(self.pair.keras, self.images, 0, away_from_kinks=True)
        keras_ties.break_ties(self.pair.keras, self.images, 0)
        weighting = np.random.default_rng(0).normal(size=7).astype(np.float32)
        self.got = parity.our_side(self.pair, weighting)(self.images)
        self.keras = parity.keras_side(self.pair, weighting, list(self.got.outputs))

    def compared(self):
        """The differences with the Keras model's current weights."""
        found = parity.compared(self.got, self.keras(self.images))
        return {what: value for what, (value, _) in found.items()}


@pytest.fixture(scope="module")
def drawn():
    return Drawn()


def test_same_weights_pass(drawn):
    assert len(drawn.got.outputs) == 16
    found = drawn.compared()
    assert {what for what in found if found[what] <= BOUNDS[what]} == set(found)
    assert len(found) == 3


def convolutions(model):
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


def one_kernel_element(model):
    layer = convolutions(model)[2]
    kernel = np.array(layer.kernel)
    kernel[0, 0, 0, 0] += kernel.std()
    return layer.kernel, kernel


def mean(model):
    variable = model.get_layer("conv4").moving_mean
    return variable, np.zeros(variable.shape)


def variance(model):
    variable = model.get_layer("conv4").moving_variance
    return variable, np.ones(variable.shape)


def bias_of_logits(model):
    variable = model.get_layer("logits").bias
    return variable, np.zeros(variable.shape)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (one_kernel_element, {"logits", "endpoints", "gradients"}),
        (mean, {"logits", "endpoints", "gradients"}),
        (variance, {"logits", "endpoints", "gradients"}),
        (bias_of_logits, {"logits", "endpoints"}),
    ],
)
def test_a_difference_is_found(drawn, change, wanted):
    """One array of the Keras model is changed, and not ours."""
    variable, value = change(drawn.pair.keras)
    before = np.array(variable)
    variable.assign(value)
    try:
        found = drawn.compared()
    finally:
        variable.assign(before)
    assert {what for what, value in found.items() if value > BOUNDS[what]} >= wanted


def test_no_relu_is_near_its_kink(drawn):
    """The output of a convolution's ReLU is 0, or well above."""
    convs = convolutions(drawn.pair.keras)
    outputs = keras.Model(drawn.pair.keras.input, [each.output for each in convs])(drawn.images)
    assert len(outputs) == 6
    for output in map(np.asarray, outputs):
        assert not ((output > 0) & (output < 0.05)).any()
        assert 0 < (output == 0).all((0, 1, 2)).sum() < output.shape[-1]


def test_training_from_the_same_weights_gives_the_same_losses():
    """Much closer than the bounds, which a max pool with a wrong gradient once met."""
    row = parity.compare_training(NAME, steps=3, batch=8, size=SIZE)
    found = {what: value["difference"] for what, value in row["differences"].items()}
    assert set(found) == {"losses", "statistics", "parameters"}
    assert max(found.values()) < 1e-5
    assert len(row["losses"]) == 3


def test_rows_of_other_models_are_kept(tmp_path):
    out, row = tmp_path / "parity.json", {"model": "vgg16_sa", "size": 64, "seconds": 1.0}
    add(out, "training", [row])
    add(out, "training", [row | {"model": "resnet34_sa"}, row | {"seconds": 2.0}])
    stored = json.loads(out.read_text())["training"]
    assert {name: each["seconds"] for name, each in stored.items()} == {
        "resnet34_sa": 1.0,
        "vgg16_sa": 2.0,
    }
