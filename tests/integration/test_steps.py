import functools
import re
import subprocess
import sys
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxattn import evaluate, steps, train
from jaxattn.data.augment import Augmentation
from jaxattn.data.crops import Crops
from jaxattn.data.preprocess import make_training_preprocess
from jaxattn.errors import InputError
from jaxattn.losses import CrossEntropy, Loss, MapDice
from jaxattn.models.backbones.base import Backbone, classify
from jaxattn.models.layers import BatchNorm
from jaxattn.runtime import devices
from jaxattn.state import create


def weighted(weights):
    """The loss of the logits with class weights alone."""
    loss = CrossEntropy(np.asarray(weights, np.float32))
    return lambda logits, batch: loss(logits, batch["label"], batch["row"])


class Linear(nn.Module):
    """Softmax regression on the mean pixel: a model whose step can be done by hand."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        return nn.Dense(3)(images.mean((1, 2))), {}


def hand_batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 4, 4, 3), np.uint8)
    return {"row": np.arange(8, dtype=np.int32), "label": np.arange(8) % 3, "image": images}


def linear_step(optimizer, weights, **options):
    ema = options.get("ema_decay", 0) > 0
    state = create(jax.random.key(0), Linear(), optimizer, (4, 4, 3), ema=ema)
    step = steps.make_train_step(
        Linear(),
        optimizer,
        make_training_preprocess(Augmentation(), Crops(), "minus_one_one"),
        Loss(weighted(weights)),
        devices.mesh(),
        seed=0,
        **options,
    )
    return state, step


def test_one_step_by_hand():
    """Augmentation off: pixels / 127.5 - 1, weighted softmax regression, plain gradient descent."""
    weights = np.array([1.0, 5.0, 1.0], np.float32)
    state, step = linear_step(optax.sgd(0.5), weights)
    kernel, bias = (np.array(state.params["Dense_0"][name]) for name in ("kernel", "bias"))
    batch = hand_batch()
    state, metrics = step(state, {}, batch)
    x = (batch["image"] / 127.5 - 1).mean((1, 2))
    logits = x @ kernel + bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    one_hot, w = np.eye(3)[batch["label"]], weights[batch["label"]][:, None]
    gradient = w * (p - one_hot) / 8
    loss = -(w * one_hot * np.log(p)).sum() / 8
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(metrics["accuracy"]) == (logits.argmax(1) == batch["label"]).mean()
    after = state.params["Dense_0"]
    np.testing.assert_allclose(after["kernel"], kernel - 0.5 * x.T @ gradient, atol=1e-6)
    np.testing.assert_allclose(after["bias"], bias - 0.5 * gradient.sum(0), atol=1e-6)
    assert int(state.step) == 1


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_give_its_gradient(parts):
    """The mean over equal parts is the mean over the batch; three steps, with an EMA."""
    results = []
    for accumulate in (1, parts):
        weights = np.array([1.0, 5.0, 1.0], np.float32)
        state, step = linear_step(optax.sgd(0.5), weights, ema_decay=0.3, accumulate=accumulate)
        for _ in range(3):
            state, metrics = step(state, {}, hand_batch())
        results.append((state, metrics))
    chex.assert_trees_all_close(*results, rtol=1e-5)


class Normed(nn.Module):
    """Softmax regression on the normalised mean pixel."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(images.mean((1, 2)))
        return nn.Dense(3)(x), {}


def test_each_part_of_a_batch_has_its_own_statistics():
    """Two parts by hand, of every second example: their running means, one after the other."""
    optimizer = optax.sgd(0.5)
    state = create(jax.random.key(0), Normed(), optimizer, (4, 4, 3))
    given = jax.device_get(state)
    preprocess = make_training_preprocess(Augmentation(), Crops(), "unit")
    loss = Loss(weighted(np.ones(3, np.float32)))
    step = steps.make_train_step(
        Normed(), optimizer, preprocess, loss, devices.mesh(), seed=0, accumulate=2
    )
    batch = hand_batch()
    state, _ = step(state, {}, batch)
    x = (batch["image"] / 255).mean((1, 2)).astype(np.float32)
    mean, gradients = np.zeros(3), []
    for part in (slice(0, None, 2), slice(1, None, 2)):
        mean = 0.9 * mean + 0.1 * x[part].mean(0)
        centred = (x[part] - x[part].mean(0)) / np.sqrt(x[part].var(0) + 1e-5)
        logits = centred @ given.params["Dense_0"]["kernel"]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        gradients.append(centred.T @ (p - np.eye(3)[batch["label"][part]]) / 4)
    np.testing.assert_allclose(state.batch_stats["BatchNorm_0"]["mean"], mean, rtol=1e-5)
    wanted = given.params["Dense_0"]["kernel"] - 0.5 * np.mean(gradients, 0)
    np.testing.assert_allclose(state.params["Dense_0"]["kernel"], wanted, atol=1e-5)


class NormedMaps(nn.Module):
    """Softmax regression on the mean of the normalised pixels' squares."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = BatchNorm(use_running_average=not train, momentum=0.9)(images)
        return nn.Dense(3)((x**2).mean((1, 2))), {}


def test_groups_of_a_step_by_hand():
    """Two groups, the halves of a batch: their statistics, the gradient, the running variance."""
    optimizer = optax.sgd(0.5)
    state = create(jax.random.key(0), NormedMaps(), optimizer, (4, 4, 3))
    kernel = np.array(state.params["Dense_0"]["kernel"])
    preprocess = make_training_preprocess(Augmentation(), Crops(), "unit")
    loss = Loss(weighted(np.ones(3, np.float32)))
    step = steps.make_train_step(
        NormedMaps(), optimizer, preprocess, loss, devices.mesh(), seed=0, groups=2
    )
    batch = hand_batch()
    state, _ = step(state, {}, batch)
    halves = (batch["image"] / 255).astype(np.float32).reshape(2, 4, 4, 4, 3)
    variances = halves.var((1, 2, 3))
    y = (halves - halves.mean((1, 2, 3), keepdims=True)) ** 2
    x = (y / (variances[:, None, None, None] + 1e-5)).mean((2, 3)).reshape(8, 3)
    p = np.exp(x @ kernel) / np.exp(x @ kernel).sum(1, keepdims=True)
    gradient = x.T @ (p - np.eye(3)[batch["label"]]) / 8
    running = state.batch_stats["BatchNorm_0"]["var"]
    np.testing.assert_allclose(running, 0.9 + 0.1 * variances.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        state.params["Dense_0"]["kernel"], kernel - 0.5 * gradient, atol=1e-5
    )


class BlocksOnly(nn.Module):
    """The logits of `Blocks`."""

    num_classes: int

    @nn.compact
    def __call__(self, images, *, train):
        return Blocks(self.num_classes)(images, train=train)[0], {}


class Blocks(Backbone):
    """Three blocks, each of several values that the backward pass needs."""

    @nn.compact
    def forward(self, x, train, endpoint):
        for index in range(3):
            for _ in range(3):
                x = jnp.tanh(nn.Dense(8)(jnp.sin(nn.Dropout(0.1, deterministic=not train)(x))))
            x = endpoint(f"block{index}", x)
        classify(x, self.num_classes, endpoint)


def test_recomputing_blocks_changes_no_result():
    """Backwards the network starts from the first two of three endpoints, the third is not needed.

    What is kept passes a barrier, so that XLA computes again what it has computed before.
    """
    model, optimizer = BlocksOnly(3), optax.sgd(0.1)
    rng, results, kept = np.random.default_rng(0), [], []
    images = rng.integers(0, 256, (8, 64, 64, 3), np.uint8)
    batch = {"row": np.arange(8, dtype=np.int32), "label": np.arange(8) % 3, "image": images}
    for remat in (False, True):
        step = steps.make_train_step(
            model,
            optimizer,
            make_training_preprocess(Augmentation(), Crops(), "unit"),
            Loss(weighted(np.ones(3, np.float32))),
            devices.mesh(),
            seed=0,
            remat=remat,
        )
        state = create(jax.random.key(0), model, optimizer, (64, 64, 3))
        lines = step.lower(state, {}, batch).as_text().splitlines()
        barriers = [
            each for each in lines if re.search(r":\d+ = stablehlo.optimization_barrier", each)
        ]
        kept.append([each.count("tensor<8x64x64x8xf32>") for each in barriers])
        results.append(step(state, {}, batch))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)
    assert kept == [[], [2]]


@pytest.mark.parametrize("field", ["mixup", "cutmix"])
def test_metadata_are_not_mixed(tiny_config, field):
    tiny_config.metadata.fields = ("age",)
    tiny_config.augment[field] = 1.0
    with pytest.raises(InputError, match=r"fields: expected none with .*cutmix, got \('age',\)"):
        train.setup(tiny_config)


@pytest.mark.parametrize(
    ("field", "value"), [("remat", "block"), ("accumulate_steps", 3), ("batch_norm_groups", 3)]
)
def test_ways_to_run_a_batch_are_checked(tiny_config, field, value):
    tiny_config[field] = value
    with pytest.raises(InputError, match=field):
        train.setup(tiny_config)


def test_the_step_is_traced_once():
    """Batches of one shape are one program, whatever the step and the state."""
    preprocess = make_training_preprocess(Augmentation(), Crops(), "minus_one_one")
    optimizer = optax.adam(0.1)
    mesh = devices.mesh()
    init = functools.partial(create, jax.random.key(0), Linear(), optimizer, (4, 4, 3))
    state = jax.jit(init, out_shardings=devices.replicated(mesh))()
    step = steps.make_train_step(
        Linear(),
        optimizer,
        chex.assert_max_traces(preprocess, n=1),
        Loss(weighted(np.ones(3))),
        mesh,
        seed=0,
    )
    for _ in range(3):
        state, _ = step(state, {}, hand_batch())
    assert int(state.step) == 3


def test_ema_by_hand():
    state, step = linear_step(optax.sgd(0.5), np.ones(3, np.float32), ema_decay=0.3)
    average = np.array(state.params["Dense_0"]["bias"])
    for taken, decay in enumerate((0.1, 2 / 11, 0.25, 0.3)):
        state, _ = step(state, {}, hand_batch())
        assert int(state.step) == taken + 1
        average = decay * average + (1 - decay) * np.array(state.params["Dense_0"]["bias"])
        np.testing.assert_allclose(state.evaluated["params"]["Dense_0"]["bias"], average, atol=1e-6)


def test_in_memory_and_streamed_images_give_the_same_step(tiny_config):
    results = []
    for name in ("in_memory", "grain"):
        tiny_config.loader.name = name
        built = train.setup(tiny_config)
        state, step = built.init(), built.step
        for batch in built.loader.training(built.sampler, 0, 2):
            state, _ = step(state, built.loader.data, batch)
        results.append(state)
    chex.assert_trees_all_equal(*results)


def test_state_is_donated(tiny_config):
    built = train.setup(tiny_config)
    state, step = built.init(), built.step
    batch = next(built.loader.training(built.sampler, 0, 1))
    step(state, built.loader.data, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_every_step_draws_again_and_runs_repeat(tiny_config):
    """The loss of the same batch differs from step to step and not from run to run."""
    tiny_config.optimizer.learning_rate = 0.0
    built = train.setup(tiny_config)
    step = built.step
    losses = []
    for _ in range(2):
        state = built.init()
        batch = next(built.loader.training(built.sampler, 0, 1))
        for _ in range(3):
            state, metrics = step(state, built.loader.data, batch)
            losses.append(float(metrics["loss"]))
    assert losses[:3] == losses[3:]
    assert len(set(losses)) == 3


def test_a_mixed_step_depends_on_nothing_before_it(tiny_config):
    """With masks and the focal loss: from a copied state another program goes on with its bits."""
    tiny_config.augment.update(mixup=0.2, cutmix=1.0)
    tiny_config.loss.focal_gamma = 1.5
    tiny_config.loss.maps.weights.attention = 0.1
    built = train.setup(tiny_config)
    batches = list(built.loader.training(built.sampler, 0, 4))
    state, states, losses = built.init(), [], []
    for batch in batches:
        state, metrics = built.step(state, built.loader.data, batch)
        states.append(jax.device_get(state))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    built = train.setup(tiny_config)
    again, _ = built.step(jax.tree.map(jnp.asarray, states[1]), built.loader.data, batches[2])
    chex.assert_trees_all_equal(again, states[2])


def test_bfloat16_keeps_parameters_and_statistics_in_float32(tiny_config):
    tiny_config.dtype = "bfloat16"
    built = train.setup(tiny_config)
    state, step = built.init(), built.step
    batch = next(built.loader.training(built.sampler, 0, 1))
    state, metrics = step(state, built.loader.data, batch)
    leaves = jax.tree.leaves((state.params, state.batch_stats, state.ema))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    assert np.isfinite(metrics["loss"])


def test_test_time_augmentation_is_the_mean_over_flips_and_quarter_turns(tiny_config):
    built = train.setup(tiny_config)
    variables = built.init().variables
    rows = np.arange(16)
    step = evaluate.make_predict_step(built.config, built.model, built.mesh, tta=8)
    mean, maps = evaluate.predict(step, variables, built.loader, rows, 16)
    images = np.asarray(built.loader.data["image"])[rows] / 127.5 - 1
    views = []
    for mirrored in (images, images[:, ::-1]):
        for turns in range(4):
            view = jnp.asarray(np.rot90(mirrored, turns, (1, 2)), jnp.float32)
            views.append(jax.nn.softmax(built.model.apply(variables, view, train=False)[0]))
    np.testing.assert_allclose(mean, np.mean(views, 0), atol=1e-5)
    plain = built.model.apply(variables, jnp.asarray(images, jnp.float32), train=False)[1]
    np.testing.assert_allclose(maps["attention"], plain["attention"], atol=1e-5)


EIGHT = """
import sys, jax, numpy as np
devices = int(sys.argv[1])
jax.config.update("jax_num_cpu_devices", devices)
import tests.tiny
from jaxattn import evaluate, train
from jaxattn.config import base
config = base()
config.model.name = "tiny"
config.dataset.update(image_size=32, num_images=210)
config.batch_size = config.evaluation.batch_size = 16
config.loader.name = sys.argv[2]
config.augment.update(mixup=0.2, cutmix=1.0)
config.optimizer.update(name="sgd", schedule="constant", warmup=0.0)
built = train.setup(config)
assert jax.device_count() == devices
state, step = built.init(), built.step
for batch in built.loader.training(built.sampler, 0, 3):
    assert len(batch["row"].sharding.device_set) == devices
    state, metrics = step(state, built.loader.data, batch)
predict_step = evaluate.make_predict_step(built.config, built.model, built.mesh)
probabilities, _ = evaluate.predict(
    predict_step, state.variables, built.loader, np.arange(21), 16
)
leaves = {"loss": metrics["loss"], "probabilities": probabilities}
for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.batch_stats)):
    leaves[jax.tree_util.keystr(path)] = leaf
np.savez(sys.argv[3], **leaves)
"""


@pytest.mark.parametrize("loader", ["in_memory", "grain"])
def test_eight_devices_give_the_same_step_as_one(tmp_path, loader):
    """Batch statistics are global, and any number of devices draws the same numbers."""
    results = []
    for count in (1, 8):
        path = tmp_path / f"{count}.npz"
        program = [sys.executable, "-c", EIGHT, str(count), loader, str(path)]
        subprocess.run(program, cwd=Path(__file__).parents[2], check=True)
        results.append(np.load(path))
    one, eight = results
    assert set(one) == set(eight)
    for name in one:
        np.testing.assert_allclose(one[name], eight[name], rtol=2e-4, atol=2e-5, err_msg=name)


class Mirror(nn.Module):
    """Its map is the image's red channel, and its logits are not to be learnt."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        shift = self.param("shift", nn.initializers.zeros, ())
        return jnp.zeros((len(images), 3)), {"red": images[..., 0][:, None] + shift}


def masked_batch(size):
    """Images whose red channel is their mask, half of them with one."""
    rng = np.random.default_rng(0)
    masks = (rng.uniform(size=(8, size, size)) < 0.4).astype(np.uint8)
    images = np.repeat(255 * masks[..., None], 3, -1).astype(np.uint8)
    facts = {"row": np.arange(8, dtype=np.int32), "label": np.arange(8) % 3}
    return facts | {"image": images, "mask": masks, "has_mask": np.arange(8) % 2 == 0}


@pytest.mark.parametrize("crops", [Crops(), Crops("random", 5)])
@pytest.mark.parametrize("target", ["lesion", "background"])
def test_masks_move_with_their_images(crops, target):
    """Through turns, flips, shifts and crops a map that was the mask still is: Dice is 1, or 0."""
    optimizer = optax.sgd(1.0)
    step = steps.make_train_step(
        Mirror(),
        optimizer,
        make_training_preprocess(
            Augmentation(shift=0.3, horizontal_flip=True, vertical_flip=True, quarter_turns=True),
            crops,
            "unit",
        ),
        Loss(weighted(np.ones(3)), MapDice({"red": 2.0}, target)),
        devices.mesh(),
        seed=0,
    )
    state = create(jax.random.key(0), Mirror(), optimizer, (5, 5, 3))
    batch = masked_batch(8)
    batch["mask"][1::2] = 7  # images without a mask: whatever stands there is ignored
    state, values = step(state, {}, batch)
    assert float(values["map_loss"]) == pytest.approx(0 if target == "lesion" else 2, abs=1e-6)
    assert float(values["loss"]) == pytest.approx(np.log(3) + float(values["map_loss"]))


def test_masks_are_loaded_where_the_loss_wants_them(tiny_config):
    """From the device and streamed: the same step; without masks, no mask travels."""
    assert "mask" not in train.setup(tiny_config).loader.data
    tiny_config.loss.maps.weights.attention = 0.1
    results = []
    for name in ("in_memory", "grain"):
        tiny_config.loader.name = name
        built = train.setup(tiny_config)
        batch = next(built.loader.training(built.sampler, 0, 1))
        assert ("mask" in built.loader.data, "mask" in batch) == (
            (True, False) if name == "in_memory" else (False, True)
        )
        state, values = built.step(built.init(), built.loader.data, batch)
        results.append(jax.tree.map(np.asarray, (state.params, values)))
    assert 0 < results[0][1]["map_loss"] < 0.1
    jax.tree.map(np.testing.assert_array_equal, *results)
