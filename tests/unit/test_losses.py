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
from jaxattn.losses import (
    CrossEntropy,
    MapDice,
    class_weights,
    diagnosis_factors,
    dice_loss,
)

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


@pytest.mark.parametrize("exponent", [0.5, 0.75, 1.0, 1.25, 1.5])
def test_loss_weighting_of_any_exponent_is_pytorchs(exponent):
    """Gessert et al. 2019: (N / N_i)^k and the sum of weighted losses over that of weights."""
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(12, 3)).astype(np.float32), rng.integers(0, 3, 12)
    weights = (100 / np.array([60, 30, 10])) ** exponent
    wanted = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), torch.tensor(weights, dtype=torch.float32)
    )
    loss = CrossEntropy(class_weights(LABELS, NAMES, exponent=exponent), reduction="weighted_mean")
    ours = loss(jnp.asarray(logits), jnp.asarray(labels))
    assert float(ours) == pytest.approx(float(wanted), rel=1e-5)


def test_diagnosis_guided_loss_is_pytorchs_by_example():
    """Per-example weighted losses, each times its image's factor, and their plain mean."""
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(6, 3)).astype(np.float32), np.array([0, 0, 1, 2, 2, 2])
    dx_types = np.array(["histo", "consensus", "histo", "follow_up", "confocal", ""])
    weights = class_weights(LABELS, NAMES, exponent=1.0)
    losses = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), torch.tensor(weights), reduction="none"
    )
    for guided, wanted in ((("a", "c"), [4, 1, 1, 2, 3, 1]), (("c",), [1, 1, 1, 2, 3, 1])):
        factors = diagnosis_factors(labels, dx_types, NAMES, guided)
        assert factors.tolist() == wanted
        # The batch holds the rows of the data set in another order.
        rows = np.array([5, 0, 3, 2, 4, 1])
        ours = CrossEntropy(weights, row_factors=factors)(
            jnp.asarray(logits[rows]), jnp.asarray(labels[rows]), jnp.asarray(rows)
        )
        assert float(ours) == pytest.approx((losses.numpy() * wanted).mean(), rel=1e-5)


def test_wrong_guided_classes_are_one_clear_error():
    unknown = np.full(100, "")
    with pytest.raises(InputError, match="diagnosis_guided: expected one of a, b, c.*, got 'd'"):
        diagnosis_factors(LABELS, unknown, NAMES, ("d",))
    with pytest.raises(InputError, match="a class with images whose dx_type is one of .*, got 'a'"):
        diagnosis_factors(LABELS, unknown, NAMES, ("a",))


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
    with pytest.raises(InputError, match="loss.class_weights: expected one of a, b, c, got 'd'"):
        class_weights(LABELS, NAMES, factors={"d": 5.0})
    with pytest.raises(
        InputError, match=r"loss.class_weights.b: expected a number of at least 0, got -1.0"
    ):
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
    with pytest.raises(
        InputError, match=r"loss.label_smoothing: expected a number in \[0, 1\), got 1.0"
    ):
        CrossEntropy(np.ones(3), label_smoothing=1.0)


def test_focal_gamma_must_not_be_negative():
    with pytest.raises(
        InputError, match=r"loss.focal_gamma: expected a number of at least 0, got -1.0"
    ):
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
    with pytest.raises(InputError, match="did you mean 'pool.*got 'pool5'"):
        MapDice({"pool5": 1.0})(*given)
    with pytest.raises(InputError, match="target: .*did you mean 'lesion'.*got 'legion'"):
        MapDice({}, "legion")
    with pytest.raises(InputError, match=r"loss.maps.weights.pool3: expected .* got -1.0"):
        MapDice({"pool3": -1.0})
