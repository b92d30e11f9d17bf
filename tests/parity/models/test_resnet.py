import re

import pytest

from jaxattn.models.attention.soft import SoftAttention
from jaxattn.models.backbones import BACKBONES
from jaxattn.models.backbones.resnet import ResNet

SMALL = (1, 2, 1, 1)
#: Table 1 of the paper: blocks at each resolution.
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}


@pytest.mark.parametrize(
    ("name", "trainable", "total"),
    [
        ("resnet50", 25_583_592, 25_636_712),
        ("resnet101", 44_601_832, 44_707_176),
        ("resnet152", 60_268_520, 60_419_944),
    ],
)
def test_parameters_and_endpoints_are_those_of_keras(shapes, count, name, trainable, total):
    _, endpoints, variables = shapes(BACKBONES[f"keras_{name}"].make(1000), 224)
    assert count(variables["params"]) == trainable
    assert count(variables) == total
    # Table 1 of the paper.
    assert endpoints == {
        "conv1": (112, 112, 64),
        "pool1": (56, 56, 64),
        **{
            f"conv{i}_block{j}": (224 // 2**i, 224 // 2**i, 64 * 2**i)
            for i, blocks in enumerate(BLOCKS[name], 2)
            for j in range(1, blocks + 1)
        },
        "global_pool": (2048,),
        "logits": (1000,),
    }


def test_what_datta_et_al_use_has_the_parameters_that_they_print(shapes, count):
    shape, _, variables = shapes(ResNet(final_endpoint="conv5_block3"), 224)
    assert shape == (1, 7, 7, 2048)
    # What is left of the printed counts without their dense layer, from 2048 features to 7 classes.
    assert count(variables["params"]) == 23_548_935 - 14_343
    assert count(variables["batch_stats"]) == 53_120


@pytest.mark.parametrize(
    ("place", "shape", "layers"),
    [
        ("conv3_block1/shortcut/bn", (8, 8, 512), {"shortcut"}),
        ("conv3_block1/conv1", (8, 8, 128), {"conv1"}),
        ("conv3_block1/conv2/conv", (8, 8, 128), {"conv1", "conv2"}),
        ("conv3_block1/conv3/bn", (8, 8, 512), {"conv1", "conv2", "conv3"}),
        ("conv3_block1/add", (8, 8, 512), {"conv1", "conv2", "conv3", "shortcut"}),
        ("conv3_block2/add", (8, 8, 512), {"conv1", "conv2", "conv3"}),
    ],
)
def test_network_has_nothing_beside_or_after_where_it_stops(shapes, place, shape, layers):
    got, endpoints, variables = shapes(ResNet(10, blocks=SMALL, final_endpoint=place), 64)
    assert got[1:] == endpoints[place] == shape
    assert set(variables["params"][place.split("/")[0]]) == layers
    assert not {"conv4_block1", "logits"} & set(variables["params"])


def test_attention_plugs_in_after_a_block(shapes):
    plugins = {"conv4_block1": SoftAttention(heads=3)}
    _, endpoints, _ = shapes(ResNet(10, blocks=SMALL, plugins=plugins), 64)
    assert endpoints["conv4_block1/maps"] == (3, 4, 4)
    assert endpoints["conv4_block1"] == (4, 4, 1024)


def path(layer: str) -> str:
    """Where we have what Keras has in a layer."""
    layer = re.sub(r"^conv1_(conv|bn)$", r"conv1/\1", layer)
    layer = re.sub(r"_0_(conv|bn)$", r"/shortcut/\1", layer)
    layer = re.sub(r"_(\d)_(conv|bn)$", r"/conv\1/\2", layer)
    layer = re.sub(r"_(\d)_relu$", r"/conv\1", layer)
    layer = re.sub(r"_add$", "/add", layer)
    layer = re.sub(r"_out$|_pool$|(?<=^conv1)_relu$", "", layer)
    return {"predictions": "logits", "avg": "global_pool"}.get(layer, layer)


def test_activations_are_those_of_keras(keras, same_as_keras):
    model = keras.applications.ResNet50(
        weights=None, classes=10, input_shape=(64, 64, 3), classifier_activation=None
    )
    stops = (
        *("conv1/conv", "conv1/bn", "conv2_block1/shortcut/conv", "conv2_block1/shortcut/bn"),
        *("conv2_block1/conv1/conv", "conv2_block1/conv1/bn", "conv2_block1/conv1"),
        *("conv2_block1/conv2/conv", "conv2_block1/conv2/bn", "conv2_block1/conv2"),
        *("conv2_block1/conv3/conv", "conv2_block1/conv3/bn", "conv2_block1/add"),
    )
    same_as_keras(ResNet(10), model, path, stops)
