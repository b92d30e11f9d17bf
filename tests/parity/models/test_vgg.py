import pytest

from jaxattn.models.attention.soft import SoftAttentionBlock
from jaxattn.models.backbones import BACKBONES
from jaxattn.models.backbones.vgg import VGG


@pytest.mark.parametrize(("name", "parameters"), [("vgg16", 138_357_544), ("vgg19", 143_667_240)])
def test_parameters_and_endpoints_are_those_of_keras(shapes, count, name, parameters):
    _, endpoints, variables = shapes(BACKBONES[f"keras_{name}"].make(1000), 224)
    assert set(variables) == {"params"}
    assert count(variables) == parameters
    convs = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}[name]
    wanted = {}
    for i, features in enumerate((64, 128, 256, 512, 512), 1):
        size = 224 // 2**i
        wanted[f"block{i}_pool"] = (size, size, features)
        for j in range(1, convs[i - 1] + 1):
            wanted[f"block{i}_conv{j}"] = (2 * size, 2 * size, features)
    wanted |= {"flatten": (25_088,), "fc1": (4096,), "fc2": (4096,), "logits": (1000,)}
    assert endpoints == wanted


def test_network_without_classes_ends_with_its_last_pool(shapes, count):
    shape, endpoints, variables = shapes(VGG(), 224)
    assert shape == (1, 7, 7, 512)
    assert "flatten" not in endpoints
    # The count that Keras gives without the top.
    assert count(variables) == 14_714_688


def test_attention_takes_the_place_of_a_pool(shapes):
    plugins = {"block4_conv3": SoftAttentionBlock(heads=3)}
    _, endpoints, _ = shapes(VGG(plugins=plugins, skip=("block4_pool",)), 64)
    assert endpoints["block4_conv3/maps"] == (3, 8, 8)
    assert endpoints["block4_conv3"] == (4, 4, 1024)
    assert endpoints["block5_pool"] == (2, 2, 512)


def path(layer: str) -> str:
    """Where we have what Keras has in a layer."""
    return "logits" if layer == "predictions" else layer


def test_activations_are_those_of_keras(keras, same_as_keras):
    model = keras.applications.VGG16(
        weights=None, classes=10, input_shape=(64, 64, 3), classifier_activation=None
    )
    same_as_keras(VGG(10), model, path, ())
