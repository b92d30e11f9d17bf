"""Layers that are frozen up to an endpoint: their bits stay, the others train as they would."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util
from ml_collections import ConfigDict

from jaxattn import run_dir, steps, train
from jaxattn.checkpoints import Checkpoints
from jaxattn.data.augment import Augmentation
from jaxattn.data.crops import Crops
from jaxattn.data.preprocess import make_training_preprocess
from jaxattn.errors import InputError
from jaxattn.freezing import Frozen
from jaxattn.losses import CrossEntropy, Loss
from jaxattn.models import registry
from jaxattn.models.backbones.base import Backbone, Entry, classify
from jaxattn.models.classifier import Classifier
from jaxattn.models.layers import BatchNorm
from jaxattn.runtime import devices
from jaxattn.state import create


class Plain(Backbone):
    """Four convolutions with batch norms: ours, and Flax's called in both ways."""

    @nn.compact
    def forward(self, x, train, endpoint):
        running = not train
        for i in range(4):
            x = nn.Conv(4, (3, 3), name=f"conv{i}")(x)
            if i == 0:
                x = BatchNorm(use_running_average=running, name=f"bn{i}")(x)
            elif i == 1:
                x = nn.BatchNorm(use_running_average=running, name=f"bn{i}")(x)
            else:
                x = nn.BatchNorm(name=f"bn{i}")(x, use_running_average=running)
            x = endpoint(f"bn{i}", jnp.tanh(x))
        classify(x, self.num_classes, endpoint)


MODEL = registry.Model(Classifier, 32, {"backbone": Entry(Plain)}, "minus_one_one")
registry.MODELS.setdefault("frozen_plain", MODEL)


@pytest.fixture
def config(tiny_config):
    """Frozen up to the third of four batch norms, with attention after the first."""
    tiny_config.model = ConfigDict(
        {"name": "frozen_plain", "attention": "gate", "attention_at": "bn0"}
    )
    tiny_config.freeze = "bn2"
    tiny_config.epochs, tiny_config.steps_per_epoch, tiny_config.batch_size = 2, 3, 8
    tiny_config.optimizer.update(
        weight_decay=0.5, decay="all", warmup=0.0, clip_norm=1.0, layer_decay=0.9
    )
    return tiny_config


def changed(before, after):
    """The layers with a leaf that has other bits."""
    before, after = (traverse_util.flatten_dict(jax.device_get(t)) for t in (before, after))
    assert before.keys() == after.keys()
    return {
        path[1] if path[0] == "backbone" else path[0]
        for path in before
        if before[path].tobytes() != after[path].tobytes()
    }


@pytest.mark.parametrize(("accumulate", "remat"), [(1, "none"), (2, "none"), (1, "blocks")])
def test_frozen_layers_keep_their_bits(config, accumulate, remat):
    """Parameters and statistics and the EMA of both; attention is trained."""
    config.accumulate_steps, config.remat = accumulate, remat
    built = train.setup(config)
    state = built.init()
    before = jax.device_get(state)
    for batch in built.loader.training(built.sampler, 0, 3):
        state, _ = built.step(state, built.loader.data, batch)
    for one, other in ((before.variables, state.variables), (before.ema, state.ema)):
        trained = {"attention", "conv3", "bn3", "logits"}
        assert changed(one["params"], other["params"]) == trained
        assert changed(one["batch_stats"], other["batch_stats"]) == {"bn3"}
    moments = optax.tree.get(state.opt_state, "mu")
    assert set(moments["backbone"]) == {"conv3", "bn3", "logits"}


def test_a_frozen_run_resumes_bit_for_bit(config, tmp_path):
    assert train.train(config, tmp_path / "whole")
    assert not train.train(config, tmp_path / "parts", lambda step: step == 2)
    assert train.train(config, tmp_path / "parts")
    states = []
    for name in ("whole", "parts"):
        with Checkpoints(tmp_path / name / run_dir.CHECKPOINTS) as saved:
            states.append(saved.restore(6, train.setup(config).like)[0])
    chex.assert_trees_all_equal(*states)


class Normed(nn.Module):
    """Softmax regression on the normalised mean pixel."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(images.mean((1, 2)))
        return nn.Dense(3, name="logits")(x), {}


def step_of(model, optimizer, frozen):
    preprocess = make_training_preprocess(Augmentation(), Crops(), "unit")
    loss = CrossEntropy(np.ones(3, np.float32))
    return steps.make_train_step(
        model,
        optimizer,
        preprocess,
        Loss(lambda logits, batch: loss(logits, batch["label"])),
        devices.mesh(),
        seed=0,
        frozen=frozen,
    )


def batch_of(size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, size, size, 3), np.uint8)
    return {"row": np.arange(8, dtype=np.int32), "label": np.arange(8) % 3, "image": images}


def test_one_step_on_running_statistics_by_hand():
    optimizer, frozen = optax.sgd(0.5), Frozen(("norm",))
    state = create(jax.random.key(0), Normed(), optimizer, (4, 4, 3), frozen=frozen)
    mean, variance = np.array([0.4, 0.5, 0.6]), np.array([0.01, 0.02, 0.03])
    statistics = {"mean": jnp.float32(mean), "var": jnp.float32(variance)}
    state = state.replace(batch_stats={"norm": statistics})
    kernel, batch = np.array(state.params["logits"]["kernel"]), batch_of(4)
    state, metrics = step_of(Normed(), optimizer, frozen)(state, {}, batch)
    x = ((batch["image"] / 255).mean((1, 2)) - mean) / np.sqrt(variance + 1e-5)
    p = np.exp(x @ kernel)
    p /= p.sum(1, keepdims=True)
    one_hot = np.eye(3)[batch["label"]]
    assert float(metrics["loss"]) == pytest.approx(-(one_hot * np.log(p)).sum() / 8, rel=1e-5)
    wanted = kernel - 0.5 * x.T @ (p - one_hot) / 8
    np.testing.assert_allclose(state.params["logits"]["kernel"], wanted, atol=1e-5)


@pytest.mark.parametrize(("freeze", "backwards"), [("", 7), ("bn1", 3), ("bn2", 1), ("bn3", 0)])
def test_nothing_is_computed_backwards_through_frozen_layers(freeze, backwards):
    """Two convolutions backwards for each trained one, but one for the first: four forwards."""
    model, optimizer = registry.create("frozen_plain", 3), optax.sgd(0.1)
    frozen = Frozen.up_to(freeze, lambda: registry.layers(model, (32, 32, 3)))
    state = create(jax.random.key(0), model, optimizer, (32, 32, 3), frozen=frozen)
    program = step_of(model, optimizer, frozen).lower(state, {}, batch_of(32)).as_text()
    assert program.count("stablehlo.convolution(") == 4 + backwards


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("bn", r"freeze: expected one of .*, bn0, .* \(did you mean 'bn.'\?\), got 'bn'"),
        ("logits", "freeze: expected one of attention, bn0, .*, conv3, got 'logits'"),  # the last
    ],
)
def test_a_wrong_endpoint_is_one_clear_error(config, freeze, message):
    config.freeze = freeze
    with pytest.raises(InputError, match=message):
        train.setup(config)
