"""Small networks that Keras has too, and weights for them."""

import dataclasses
import functools

import numpy as np
import pytest

from jaxattn.models import registry
from jaxattn.models.backbones import BACKBONES
from jaxattn.models.classifier import Classifier
from jaxattn.models.datta2021 import TappedClassifier

keras = pytest.importorskip("keras")
densenet = pytest.importorskip(
    "keras.src.applications.densenet"
)  # only there with blocks to choose

BLOCKS = (1, 2, 1, 1)
SIZE = 32


class OwnSoftAttention(keras.layers.Layer):
    """The weights of the released layer, in a class of another name."""

    def build(self, shape):
        channels = shape[-1]
        self.kernel = self.add_weight(shape=(channels, 3, 3, 1, 16), name="kernel_conv3d")
        self.bias = self.add_weight(shape=(16,), name="bias_conv3d")

    def call(self, x):
        return [x, x]


def plain():
    """keras.applications' own DenseNet, of few blocks."""
    return densenet.DenseNet(list(BLOCKS), weights=None, input_shape=(SIZE, SIZE, 3), classes=5)


def attending():
    """A DenseNet cut inside a block, attention, and a head."""
    network = plain()
    x = network.get_layer("conv4_block1_1_relu").output
    attended, _ = OwnSoftAttention()(x)
    pooled = [keras.layers.MaxPooling2D(2, padding="same")(each) for each in (x, attended)]
    x = keras.layers.ReLU()(keras.layers.Concatenate()(pooled))
    x = keras.layers.Flatten()(keras.layers.Dropout(0.5)(x))
    return keras.Model(network.input, keras.layers.Dense(3)(x))


@pytest.fixture
def small(monkeypatch):
    """Registers ``plain`` and ``attending``, and makes them in Keras with random weights."""
    entry = BACKBONES["keras_densenet121"]
    backbone = dataclasses.replace(entry, make=functools.partial(entry.make, blocks=BLOCKS))
    tap = {"backbone": backbone, "endpoint": "conv4_block1/conv1"}
    for name, model in (
        ("plain", registry.Model(Classifier, SIZE, {"backbone": backbone})),
        ("attending", registry.Model(TappedClassifier, SIZE, tap)),
    ):
        monkeypatch.setitem(registry.MODELS, name, model)

    def make(name, seed=0):
        model = {"plain": plain, "attending": attending}[name]()
        rng = np.random.default_rng(seed)
        model.set_weights([rng.standard_normal(w.shape, np.float32) for w in model.weights])
        return model

    return make


@pytest.fixture
def layers_of():
    """Name and weights of every layer of a Keras model that has any."""
    return lambda model: [(la.name, la.get_weights()) for la in model.layers if la.weights]
