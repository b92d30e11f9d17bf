import jax
import numpy as np
import pytest
from flax import traverse_util

from jaxattn.convert import keras as converting
from jaxattn.convert import keras_files
from jaxattn.errors import InputError

keras = pytest.importorskip("keras")
# Keras' own, with a newer NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_each_weight_goes_to_its_leaf(small, layers_of):
    model = small("plain")
    variables = converting.from_layers("plain", layers_of(model))
    params, stats = (variables[kind]["backbone"] for kind in ("params", "batch_stats"))
    norm = model.get_layer("conv3_block2_0_bn")
    head = model.get_layer("predictions")
    block = params["conv3_block2"]
    leaves = (
        (block["bn"]["scale"], norm.gamma),
        (block["bn"]["bias"], norm.beta),
        (stats["conv3_block2"]["bn"]["mean"], norm.moving_mean),
        (stats["conv3_block2"]["bn"]["var"], norm.moving_variance),
        (block["conv1"]["conv"]["kernel"], model.get_layer("conv3_block2_1_conv").kernel),
        (block["conv2"]["kernel"], model.get_layer("conv3_block2_2_conv").kernel),
        (params["pool3"]["conv"]["kernel"], model.get_layer("pool3_conv").kernel),
        (params["logits"]["kernel"], head.kernel),
        (params["logits"]["bias"], head.bias),
    )
    for ours, theirs in leaves:
        np.testing.assert_array_equal(ours, theirs)
    assert len(jax.tree.leaves(variables)) == len(model.weights)


def test_attention_of_any_class(small, layers_of):
    model = small("attending")
    variables = converting.from_layers("attending", layers_of(model))
    attention = variables["params"]["attention"]["soft_attention"]
    (theirs,) = (la for la in model.layers if type(la).__name__ == "OwnSoftAttention")
    np.testing.assert_array_equal(attention["kernel"], theirs.kernel)
    np.testing.assert_array_equal(attention["bias"], theirs.bias)


@pytest.mark.parametrize("name", ["plain", "attending"])
@pytest.mark.parametrize("file", ["m.h5", "m.weights.h5"])
def test_there_and_back_again(small, tmp_path, name, file):
    """Keras to ours to a file to Keras, and from that file to ours."""
    model = small(name)
    layers = [(type(la).__name__, la.get_weights()) for la in model.layers if la.weights]
    variables = converting.from_layers(name, layers)
    layers = converting.to_layers(name, variables)
    if name == "attending" and file == "m.weights.h5":  # the file names classes
        layers = [layer._replace(kind=layer.kind.replace("soft", "own_soft")) for layer in layers]
    keras_files.write(tmp_path / file, layers)
    other = small(name, seed=1)
    other.load_weights(tmp_path / file)
    for ours, theirs in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    again = traverse_util.flatten_dict(converting.load(tmp_path / file, name))
    before = traverse_util.flatten_dict(variables)
    assert again.keys() == before.keys()
    assert all(np.array_equal(again[path], before[path]) for path in before)


def test_without_its_top(small, layers_of):
    variables = converting.from_layers("plain", layers_of(small("plain"))[:-1])
    assert "logits" not in variables["params"]["backbone"]
    assert [layer.name for layer in converting.to_layers("plain", variables)][-1] == "bn"


def test_every_difference_is_named_at_once(small, layers_of):
    layers = layers_of(small("plain"))
    names = [name for name, _ in layers]
    layers[names.index("conv2_block1_1_conv")][1][0] = np.zeros((1, 1, 64, 127), np.float32)
    del layers[names.index("conv3_block2_2_conv")]
    layers.append(("extra", [np.zeros((7, 9), np.float32)]))
    with pytest.raises(InputError) as error:
        converting.from_layers("plain", layers, 5, source="x.h5")
    assert str(error.value) == (
        "x.h5: expected the weights of 'plain' with 5 classes, got others; "
        "missing: conv3_block2_2_conv 3x3x128x32; "
        "left over: extra 7x9; expected instead: "
        "conv2_block1_1_conv 1x1x64x128 (conv2_block1_1_conv 1x1x64x127 given)"
    )


def test_other_classes_than_said(small, layers_of):
    with pytest.raises(InputError, match=r"with 7 classes, got others; .*predictions \d+x7 7 \("):
        converting.from_layers("plain", layers_of(small("plain")), 7)


def test_named_layers_in_another_order(small, layers_of):
    """Of one shape, so that only their names tell."""
    layers = layers_of(small("plain"))
    names = [name for name, _ in layers]
    a, b = names.index("conv2_block1_2_conv"), names.index("conv3_block1_2_conv")
    layers[a], layers[b] = layers[b], layers[a]
    with pytest.raises(InputError, match=r"conv2_block1_2_conv \(conv3_block1_2_conv given\)"):
        converting.from_layers("plain", layers)


def test_another_model(small, tmp_path):
    small("attending").save_weights(tmp_path / "m.weights.h5")
    message = "h5: expected the weights of 'plain' with 3 classes, got others; missing"
    with pytest.raises(InputError, match=message):
        converting.load(tmp_path / "m.weights.h5", "plain")


def test_an_unknown_model(small, layers_of):
    with pytest.raises(InputError, match="did you mean 'plain'"):
        converting.from_layers("plane", layers_of(small("plain")))


def test_images_of_another_size(small, layers_of):
    """The dense layer sees every position."""
    layers = layers_of(small("attending"))
    kernel, bias = layers[-1][1]
    larger = np.concatenate([kernel] * 4)
    layers[-1] = ("dense", [larger, bias])
    variables = converting.from_layers("attending", layers, image_size=64)
    np.testing.assert_array_equal(variables["params"]["logits"]["kernel"], larger)
    with pytest.raises(InputError, match="expected instead: dense"):
        converting.from_layers("attending", layers)
