"""From a config to a step: what the model is given where images are cut into crops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxattn import evaluate, train
from jaxattn.data.crops import corners
from jaxattn.models import registry
from jaxattn.models.backbones import Entry
from jaxattn.models.backbones.densenet import DenseNet
from jaxattn.models.gessert2019 import PatchClassifier

IMAGE, CROP, COUNT = (40, 56), 24, 4


@pytest.fixture
def crops_config(tiny_config, monkeypatch):
    """A patch classifier on images that are not square, 4 crops of each."""
    backbone = Entry(functools.partial(DenseNet, blocks=(1, 1), framework="torch"))
    entry = registry.Model(PatchClassifier, CROP, {"backbone": backbone})
    monkeypatch.setitem(registry.MODELS, "tiny_patches", entry)
    config = tiny_config
    config.model = ConfigDict({"name": "tiny_patches"})
    config.dataset.image_size = IMAGE
    config.dataset.num_images = 70
    config.split.update(test=0.3, validation=0.0)
    config.augment.update(rotation=0.0, shift=0.0, zoom=0.0, saturation=0.5)
    config.normalisation = "unit"
    config.crops.update(size=CROP, count=COUNT)
    config.ema_decay = 0.0
    config.batch_size = config.evaluation.batch_size = 4
    config.optimizer.update(warmup=0.0, schedule="constant")
    return config


def by_hand(images):
    """The ordered crops of images, cut with NumPy."""
    places = corners(COUNT, IMAGE, (CROP, CROP))
    return np.stack([images[:, y : y + CROP, x : x + CROP] for y, x in places], 1) / 255


@pytest.mark.parametrize(("strategy", "loader"), [("ordered", "in_memory"), ("multi", "grain")])
def test_crops_through_training_and_prediction(crops_config, strategy, loader):
    crops_config.crops.strategy = strategy
    crops_config.loader.name = loader
    if strategy == "ordered":
        crops_config.model.attention = ("initial", "end")
    built = train.setup(crops_config)
    state = built.init()
    kernel = np.array(state.params["logits"]["kernel"])
    batch = next(built.loader.training(built.sampler, 0, 1))
    state, metrics = built.step(state, built.loader.data, batch)
    assert np.isfinite(metrics["loss"])
    assert np.any(kernel != state.params["logits"]["kernel"])

    rows = np.arange(5)
    step = evaluate.make_predict_step(built.config, built.model, built.mesh)
    probabilities, maps = evaluate.predict(step, state.variables, built.loader, rows, 4)
    images = np.stack([built.dataset.records[row]["image"] for row in rows])
    assert images.shape[1:] == (*IMAGE, 3)
    given = jnp.asarray(by_hand(images), jnp.float32)
    given = given if strategy == "ordered" else given.reshape(-1, CROP, CROP, 3)
    logits, weights = built.model.apply(state.variables, given, train=False)
    wanted = jax.nn.softmax(logits)
    if strategy == "multi":
        wanted = wanted.reshape(5, COUNT, -1).mean(1)
    np.testing.assert_allclose(probabilities, wanted, atol=1e-5)
    assert {name: each.shape for name, each in maps.items()} == {
        name: (5, 1, 5, 7) for name in weights
    }
    for name, each in weights.items():  # the corners of the image are of one crop each
        shown = maps[name][:, 0][:, [0, 0, -1, -1], [0, -1, 0, -1]]
        np.testing.assert_allclose(shown, each[..., 0, 0], atol=1e-6)
