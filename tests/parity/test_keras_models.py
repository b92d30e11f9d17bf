import math

import numpy as np
import pytest

from jaxattn.errors import InputError

keras = pytest.importorskip("keras")
keras_models = pytest.importorskip("references.keras_models")


# Printed by the released notebooks: all parameters, and the trained ones.
GOLDEN = {
    "irv2_sa": (47_535_287, 47_480_887),
    "irv2": (47_550_631, 47_496_231),
    "densenet201_sa": (17_477_463, 17_264_151),
    "densenet201": (17_474_247, 17_260_935),
    "resnet50_sa": (23_911_319, 23_858_199),
    "resnet50": (23_602_055, 23_548_935),
    "resnet34_sa": (31_414_167, 31_391_767),
    "resnet34": (30_805_895, 30_783_495),
    "vgg16_sa": (62_650_711, 62_642_263),
    "vgg16": (60_217_671, 60_209_223),
    "isic_irv2_sa_5x5": (47_550_450, 47_496_434),
    "isic_irv2_sa_12x12": (34_940_338, 34_892_210),
    "koefler_cnn_sa": (59_069_331, 59_065_363),
}


def count(variables):
    return sum(math.prod(v.shape) for v in variables)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_parameter_counts_are_the_printed_ones(name):
    keras.utils.clear_session()
    with keras.StatelessScope(initialize_variables=False):  # only shapes are needed
        model = keras_models.build(name, classes=2 if name.startswith("isic") else 7)
    assert (model.count_params(), count(model.trainable_variables)) == GOLDEN[name]


def softmax(logits, axis):
    powers = np.exp(logits - logits.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


@pytest.mark.parametrize("aggregate", [True, False])
def test_soft_attention_by_hand(aggregate):
    """The convolution tap by tap: long axis along the height, channels 0 to 2 alone."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 5, 6)).astype(np.float32)
    kernel = rng.normal(size=(6, 3, 3, 1, 2)).astype(np.float32)
    bias = rng.normal(size=2).astype(np.float32)
    layer = keras_models.SoftAttention(2, aggregate)
    layer.build(x.shape)
    layer.set_weights([kernel, bias])
    attended, maps = (np.asarray(each) for each in layer(x))
    logits = np.tile(bias, (2, 4, 5, 1))
    for h, w, row, column in np.ndindex(4, 5, 4, 5):
        down, right = row - h + 2, column - w + 1  # (6 - 1) // 2 rows and one column before
        if 0 <= down < 6 and 0 <= right < 3:
            logits[:, h, w] += x[:, row, column, :3] @ kernel[down, right, :, 0]
    wanted = softmax(np.maximum(logits, 0).reshape(2, 20, 2), 1).reshape(2, 4, 5, 2)
    np.testing.assert_allclose(maps, wanted.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-6)
    heads = x[:, :, :, None] * wanted[..., None]
    heads = heads.sum(3) if aggregate else heads.reshape(2, 4, 5, 12)
    np.testing.assert_allclose(attended, heads, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_weights_come_from_a_file(tmp_path):
    keras.utils.clear_session()
    model = keras_models.build("resnet34", classes=3, size=32)
    model.save_weights(tmp_path / "model.weights.h5")
    keras.utils.clear_session()
    again = keras_models.build("resnet34", 3, tmp_path / "model.weights.h5", size=32, softmax=True)
    for variable, wanted in zip(again.variables, model.variables, strict=True):
        np.testing.assert_array_equal(variable.value, wanted.value)
    assert again.get_layer("logits").activation is keras.activations.softmax
    assert model.get_layer("logits").activation is keras.activations.linear


def test_unknown_model_is_named():
    with pytest.raises(InputError, match="did you mean 'vgg16'.*got 'vgg_16'"):
        keras_models.build("vgg_16")
