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
from jaxattn.losses import CrossEntropy, class_weights

NAMES = ("a", "b", "c")
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


@pytest.mark.skipif("JAXATTN_GOLDEN" not in os.environ, reason="JAXATTN_GOLDEN names no folder")
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
