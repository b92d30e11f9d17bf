import re

import pytest

from jaxattn.models.attention.soft import SoftAttention
from jaxattn.models.backbones import BACKBONES
from jaxattn.models.backbones.densenet import DenseNet

SMALL = (1, 2, 1, 2)
#: Table 1 of the paper: layers of each dense block.
LAYERS = {
    "densenet121": (6, 12, 24, 16),
    "densenet169": (6, 12, 32, 32),
    "densenet201": (6, 12, 48, 32),
}


@pytest.mark.parametrize(
    ("name", "channels", "trainable", "total"),
    [
        ("densenet121", 1024, 7_978_856, 8_062_504),
        ("densenet169", 1664, 14_149_480, 14_307_880),
        ("densenet201", 1920, 20_013_928, 20_242_984),
    ],
)
def test_parameters_and_endpoints_are_those_of_keras(
    shapes, count, name, channels, trainable, total
):
    _, endpoints, variables = shapes(BACKBONES[f"keras_{name}"].make(1000), 224)
    assert count(variables["params"]) == trainable
    assert count(variables) == total
    wanted = {"conv1": (112, 112, 64), "pool1": (56, 56, 64)}
    for i, layers in enumerate(LAYERS[name], 2):
        size, start = 224 // 2**i, wanted[f"pool{i - 1}"][-1]
        for j in range(1, layers + 1):
            wanted[f"conv{i}_block{j}"] = (size, size, start + 32 * j)
        if i < 5:
            wanted[f"pool{i}"] = (size // 2, size // 2, (start + 32 * layers) // 2)
    wanted |= {"bn": (7, 7, channels), "relu": (7, 7, channels)}
    assert endpoints == wanted | {"global_pool": (channels,), "logits": (1000,)}


def test_what_datta_et_al_use_has_the_parameters_that_they_print(shapes, count):
    tap = "conv5_block29/conv1"
    shape, _, variables = shapes(BACKBONES["keras_densenet201"].make(final_endpoint=tap), 224)
    assert shape == (1, 7, 7, 128)
    # What is left of the printed counts without their dense layer, from 6272 features to 7 classes.
    assert count(variables["params"]) == 17_260_935 - 43_911
    assert count(variables["batch_stats"]) == 213_312


@pytest.mark.parametrize(
    ("place", "shape", "layers"),
    [
        ("conv3_block2/relu", (8, 8, 80), {"bn"}),
        ("conv3_block2/conv1/conv", (8, 8, 128), {"bn", "conv1"}),
        ("conv3_block2/conv1", (8, 8, 128), {"bn", "conv1"}),
        ("conv3_block2/conv2", (8, 8, 32), {"bn", "conv1", "conv2"}),
        ("pool3/bn", (8, 8, 112), {"bn"}),
    ],
)
def test_network_has_nothing_after_where_it_stops(shapes, place, shape, layers):
    got, endpoints, variables = shapes(DenseNet(10, blocks=SMALL, final_endpoint=place), 64)
    assert got[1:] == endpoints[place] == shape
    assert set(variables["params"][place.split("/")[0]]) == layers
    assert not {"conv4_block1", "logits"} & set(variables["params"])


def test_attention_plugs_in_after_a_block(shapes):
    plugins = {"conv4_block1": SoftAttention(heads=3)}
    _, endpoints, _ = shapes(DenseNet(10, blocks=SMALL, plugins=plugins), 64)
    assert endpoints["conv4_block1/maps"] == (3, 4, 4)
    assert endpoints["conv4_block1"] == (4, 4, 88)


def path(layer: str) -> str:
    """Where we have what Keras has in a layer."""
    layer = re.sub(r"^(conv1|pool\d)_", r"\1/", layer)
    layer = re.sub(r"_0_(bn|relu)$", r"/\1", layer)
    layer = re.sub(r"_1_(conv|bn|relu)$", r"/conv1/\1", layer)
    layer = re.sub(r"_2_conv$", "/conv2", layer)
    layer = re.sub(r"_concat$|/pool$|(?<=conv1)/relu$", "", layer)
    return {"predictions": "logits", "avg_pool": "global_pool"}.get(layer, layer)


def test_activations_are_those_of_keras(keras, same_as_keras):
    model = keras.applications.DenseNet121(
        weights=None, classes=10, input_shape=(64, 64, 3), classifier_activation=None
    )
    stops = (
        *("conv1/conv", "conv1/bn", "pool2/bn", "pool2/relu", "pool2/conv"),
        *("conv2_block2/bn", "conv2_block2/relu", "conv2_block2/conv1/conv"),
        *("conv2_block2/conv1/bn", "conv2_block2/conv1", "conv2_block2/conv2"),
    )
    same_as_keras(DenseNet(10), model, path, stops)
