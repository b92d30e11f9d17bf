"""Our description of each network against Keras itself: layers, their order, names and shapes."""

import numpy as np
import pytest

from jaxattn.convert import keras as converting
from jaxattn.convert import keras_networks
from jaxattn.convert.keras_order import order
from jaxattn.errors import InputError
from jaxattn.models import registry

keras = pytest.importorskip("keras")
keras_models = pytest.importorskip("references.keras_models")


def numbered(model):
    """Each layer with weights, and for its weights arrays of their shapes and of one number each.

    The arrays take no memory.
    """
    weights = iter(range(10_000))
    return [
        (layer.name, [np.broadcast_to(np.float32(next(weights)), w.shape) for w in layer.weights])
        for layer in model.layers
        if layer.weights
    ]


def there_and_back(name, layers):
    """Converts, checks that nothing changed, and returns the layers and the variables."""
    variables = converting.from_layers(name, layers)
    back = converting.to_layers(name, variables)
    for layer, (_, arrays) in zip(back, layers, strict=True):
        for ours, theirs in zip(layer.arrays, arrays, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    return back, variables


@pytest.mark.parametrize("name", keras_models.PUBLISHED)
def test_every_weight_of_a_published_model_has_its_place(name):
    keras.utils.clear_session()
    with keras.StatelessScope(initialize_variables=False):
        model = keras_models.build(name, classes=2 if name.startswith("isic") else 7)
    there_and_back(name, numbered(model))


@pytest.mark.parametrize("name", keras_models.APPLICATIONS)
@pytest.mark.parametrize("top", [True, False])
def test_the_networks_of_keras_applications_have_these_layers(name, top):
    """Names too, of which Keras makes up most: so each place is the one that Keras means."""
    keras.utils.clear_session()
    make = getattr(keras.applications, keras_models.APPLICATIONS[name][0])
    with keras.StatelessScope(initialize_variables=False):
        model = make(weights=None, include_top=top)
    ours, variables = there_and_back(name, numbered(model))
    assert [layer.name for layer in ours] == [la.name for la in model.layers if la.weights]
    assert ("logits" in variables["params"]["backbone"]) == top


def test_weightless_layers_count():
    """Depth is what orders layers, and every layer is a step."""
    keras.utils.clear_session()
    with keras.StatelessScope(initialize_variables=False):
        model = keras.applications.InceptionV3(weights=None)
    ours = order(keras_networks.output(registry.create("keras_inception_v3", 1000)))
    assert len(ours) == len(model.layers)


def test_the_released_tap_is_keras_layer_195():
    """Datta et al.'s Grad-CAM names it: conv2d_195, in a fresh session."""
    layers = {
        layer.path: layer.name
        for layer in order(keras_networks.output(registry.create("irv2_sa", 7)))
    }
    assert layers["backbone/block8_9/branch0/conv1/conv"] == "conv2d_195"
    assert layers["backbone/block8_9/branch0/conv1/bn"] == "batch_normalization_195"
    assert not any("block8_10" in path or "block8_9/branch1" in path for path in layers)


def test_a_model_that_keras_does_not_have():
    with pytest.raises(InputError, match="a counterpart in Keras, got a AttentionCNN"):
        converting.from_layers("attention_cnn", [("dense", [np.zeros((3, 2))])])
