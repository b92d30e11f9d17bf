import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.utils.class_weight
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from jaxattn.errors import InputError
from jaxattn.losses import CrossEntropy, MapDice, class_weights, dice_loss

NAMES = ("a", "b", "c")
golden = pytest.mark.skipif(
    "JAXATTN_GOLDEN" not in os.environ, reason="JAXATTN_GOLDEN names no folder"
)
LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def test_inverse_frequency_is_scikit_learns_balanced():
    theirs = sklearn.utils.class_weight.compute_class_weight(
        "balanced", classes=np.arange(3), y=LABELS
    )
    np.testing.assert_allclose(class_weights(LABELS, NAMES, exponent=1.0), theirs, rtol=1e-6)


def test_koeflers_printed_weights():
    """Köfler 2023 prints .57 .57 .58 1.23 1.93 4.45 5.5 for these counts."""
    counts = [6705, 6678, 6594, 3084, 1962, 852, 690]
    names = ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df")
    weights = class_weights(np.repeat(np.arange(7), counts), names, exponent=1.0)
    np.testing.assert_allclose(weights, [0.57, 0.57, 0.58, 1.23, 1.93, 4.45, 5.5], atol=0.006)


@given(st.floats(0, 2), st.lists(st.integers(0, 2), min_size=1).map(np.array))
def test_weights_have_mean_one_over_the_images(exponent, labels):
    weights = class_weights(labels, NAMES, exponent=exponent)
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5)


def test_factors_by_name():
    np.testing.assert_array_equal(class_weights(LABELS, NAMES, factors={"b": 5.0}), [1, 5, 1])
    with pytest.raises(InputError, match="loss.class_weights: class 'd' given; known: a, b, c"):
        class_weights(LABELS, NAMES, factors={"d": 5.0})
    with pytest.raises(InputError, match=r"loss.class_weights.b: -1.0 given"):
        class_weights(LABELS, NAMES, factors={"b": -1.0})


def test_unweighted_is_scikit_learns_log_loss():
    logits = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 3, 20)
    loss = CrossEntropy(np.ones(3, np.float32))(jnp.asarray(logits), jnp.asarray(labels))
    assert float(loss) == pytest.approx(
        log_loss(labels, np.asarray(jax.nn.softmax(logits)), labels=[0, 1, 2]), rel=1e-5
    )


def test_keras_class_weight_and_label_smoothing():
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, 3)).astype(np.float32), rng.integers(0, 3, 9)
    weights = np.array([1.0, 5.0, 0.5], np.float32)
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)(
        np.eye(3)[labels], logits, sample_weight=weights[labels]
    )
    ours = CrossEntropy(weights, label_smoothing=0.1)(jnp.asarray(logits), jnp.asarray(labels))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


@golden
def test_weighted_mean_is_pytorchs():
    golden = np.load(Path(os.environ["JAXATTN_GOLDEN"]) / "losses.npz")
    loss = CrossEntropy(golden["class_weights"], reduction="weighted_mean")
    ours = loss(jnp.asarray(golden["logits"]), jnp.asarray(golden["targets"]))
    assert float(ours) == pytest.approx(float(golden["weighted_ce_mean"]), rel=1e-6)


def test_wrong_argument_is_one_clear_error():
    with pytest.raises(InputError, match="did you mean 'mean'"):
        CrossEntropy(np.ones(3), reduction="maen")
    with pytest.raises(InputError, match=r"loss.label_smoothing: 1.0 given"):
        CrossEntropy(np.ones(3), label_smoothing=1.0)


def test_focal_gamma_must_not_be_negative():
    with pytest.raises(InputError, match=r"loss.focal_gamma: -1.0 given, 0 or more wanted"):
        CrossEntropy(np.ones(3), focal_gamma=-1.0)


@golden
def test_focal_loss_and_its_gradient():
    stored = np.load(Path(os.environ["JAXATTN_GOLDEN"]) / "losses.npz")
    loss = CrossEntropy(np.ones(7, np.float32), focal_gamma=2.0)
    logits, targets = jnp.asarray(stored["logits"]), jnp.asarray(stored["targets"])
    value, gradient = jax.value_and_grad(loss)(logits, targets)
    assert float(value) == pytest.approx(float(stored["focal_gamma2"]), rel=1e-5)
    np.testing.assert_allclose(gradient, stored["focal_gamma2_grad"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_is_finite_where_the_model_is_sure(gamma):
    """p is 1 in the first row, to the last bit, and 0 in the second."""
    logits = jnp.array([[200.0, 0.0], [0.0, 200.0]])
    loss = CrossEntropy(np.ones(2, np.float32), focal_gamma=gamma)
    value, gradient = jax.value_and_grad(loss)(logits, jnp.array([0, 0]))
    assert float(value) == pytest.approx(100)
    np.testing.assert_allclose(gradient, [[0, 0], [-0.5, 0.5]], atol=1e-6)


@golden
def test_dice_loss_is_the_golden_one():
    stored = np.load(Path(os.environ["JAXATTN_GOLDEN"]) / "losses.npz")
    maps = jnp.asarray(stored["dice_prediction"])[:, None]
    value = dice_loss(maps, jnp.asarray(stored["dice_target"]), jnp.ones(3, bool))
    assert float(value) == pytest.approx(float(stored["dice_loss"]), rel=1e-5)


def given_maps(seed=0):
    rng = np.random.default_rng(seed)
    maps = {
        "pool3": rng.uniform(0, 1, (5, 1, 7, 6)).astype(np.float32),
        "pool4": rng.uniform(0, 1, (5, 2, 4, 3)).astype(np.float32),
    }
    masks = (rng.uniform(size=(5, 20, 17)) < 0.4).astype(np.uint8)
    masks[1] = 0
    return maps, masks, np.array([True, True, False, True, False])


@pytest.mark.parametrize("target", ["lesion", "background"])
def test_map_loss_and_its_gradient_are_pytorchs(target):
    """Sizes that are no multiples, two heads, an empty mask, images without one: NaN stays out."""
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    maps, masks, has_mask = given_maps()
    total, theirs = 0.0, {k: torch.tensor(v, requires_grad=True) for k, v in maps.items()}
    for name, weight in (("pool3", 0.001), ("pool4", 0.01)):
        a = theirs[name][has_mask]
        wanted = torch.tensor(masks[has_mask], dtype=torch.float32)[:, None]
        wanted = 1 - wanted if target == "background" else wanted
        wanted = torch.nn.functional.adaptive_avg_pool2d(wanted, a.shape[2:]).expand_as(a)
        total += weight * (1 - 2 * (a * wanted).sum() / (a + wanted).sum())
    total.backward()
    loss = MapDice({"pool3": 0.001, "pool4": 0.01}, target)
    given = jax.tree.map(jnp.asarray, (maps, masks, has_mask))
    value, gradients = jax.value_and_grad(loss)(*given)
    assert float(value) == pytest.approx(total.item(), rel=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, theirs[name].grad, rtol=1e-4, atol=1e-9)
        assert not gradient[~has_mask].any()


def test_map_loss_without_masks_is_nothing():
    maps, masks, _ = jax.tree.map(jnp.asarray, given_maps())
    loss = MapDice({"pool3": 1.0})
    value, gradients = jax.value_and_grad(loss)(maps, masks, jnp.zeros(5, bool))
    assert float(value) == 0
    assert not any(gradient.any() for gradient in gradients.values())
    # Empty masks are masks: the map is to vanish, and the loss is 1 until it has.
    value = loss(maps, jnp.zeros_like(masks), jnp.ones(5, bool))
    assert float(value) == 1


def test_wrong_map_loss_is_one_clear_error():
    given = jax.tree.map(jnp.asarray, given_maps())
    with pytest.raises(InputError, match="map 'pool5' given; did you mean 'pool"):
        MapDice({"pool5": 1.0})(*given)
    with pytest.raises(InputError, match="target: 'legion' given; did you mean 'lesion'"):
        MapDice({}, "legion")
    with pytest.raises(InputError, match=r"loss.maps.weights.pool3: -1.0 given"):
        MapDice({"pool3": -1.0})
