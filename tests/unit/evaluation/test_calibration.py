import json

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from sklearn.calibration import calibration_curve

from jaxattn.errors import InputError
from jaxattn.evaluation import calibration
from jaxattn.run import calibrated_step


def drawn(images=4000, classes=4, temperature=1.0, seed=0):
    """Labels drawn from known probabilities, and those with their logits multiplied."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, classes)) * 1.5
    truth = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (truth.cumsum(1) < rng.random((images, 1))).sum(1)
    stated = np.exp(logits * temperature)
    return labels, stated / stated.sum(1, keepdims=True)


def test_brier_and_nll_are_scikit_learns():
    labels, probabilities = drawn(200)
    found = calibration.measure(labels, probabilities)
    assert found["nll"] == pytest.approx(sklearn.metrics.log_loss(labels, probabilities))
    assert found["brier"] == pytest.approx(
        sklearn.metrics.brier_score_loss(labels, probabilities, scale_by_half=False)
    )


def test_ece_by_hand_and_the_curve_is_scikit_learns():
    # Two bins: three images at .9, two of them right; one at .6, wrong.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.4, 0.6]])
    found = calibration.measure(np.array([0, 1, 1, 0]), probabilities)
    assert found["ece"] == pytest.approx(3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.6)
    labels, probabilities = drawn(500)
    found = calibration.measure(labels, probabilities)["reliability"]
    accuracy, confidence = calibration_curve(
        probabilities.argmax(1) == labels, probabilities.max(1), n_bins=calibration.BINS
    )
    assert [row["accuracy"] for row in found] == pytest.approx(accuracy)
    assert [row["confidence"] for row in found] == pytest.approx(confidence)
    assert sum(row["images"] for row in found) == 500


def test_certain_and_wrong_is_finite():
    found = calibration.measure(np.array([0, 0]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert found["ece"] == 0.5
    assert found["brier"] == 1.0
    assert found["nll"] == pytest.approx(-np.log(1e-12) / 2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_scaling_finds_the_temperature_and_helps_on_other_images(temperature):
    fitted = calibration.fit_temperature(*drawn(temperature=temperature))
    assert fitted == pytest.approx(temperature, rel=0.06)
    labels, stated = drawn(temperature=temperature, seed=1)
    before = calibration.measure(labels, stated)
    after = calibration.measure(labels, calibration.scale(stated, fitted))
    slack = 1e-3 if temperature == 1 else -0.02
    assert after["nll"] < before["nll"] + slack
    assert after["ece"] < 0.03
    np.testing.assert_array_equal(
        calibration.scale(stated, fitted).argmax(1), stated.argmax(1)
    )  # no decision changes


def test_scaling_by_hand():
    scaled = calibration.scale(np.array([[0.8, 0.2], [1.0, 0.0]]), 2.0)
    assert scaled[0] == pytest.approx([2 / 3, 1 / 3])  # the square roots are as 2 to 1
    assert np.isfinite(scaled).all()
    np.testing.assert_allclose(calibration.scale(scaled[:1], 1.0), scaled[:1])
    assert calibration.fit_temperature(np.zeros(0, int), np.zeros((0, 2))) is None


def test_the_temperature_of_a_run_scales_its_predictions(tmp_path):
    with pytest.raises(InputError, match="the temperature that python -m jaxattn.evaluate"):
        calibration.read_temperature(tmp_path, 7, 1)
    path = tmp_path / calibration.TEMPERATURE
    path.write_text(json.dumps({"step": 7, "tta": 1, "temperature": 1.7}))
    temperature = calibration.read_temperature(tmp_path, 7, 1)
    _, stated = drawn(20)
    stated[0] = [1, 0, 0, 0]
    step = calibrated_step(lambda scores: (scores, {"map": 3}), temperature)
    scaled, maps = step(jnp.asarray(stated, jnp.float32))
    np.testing.assert_allclose(scaled, calibration.scale(stated, 1.7), atol=1e-6)
    assert maps == {"map": 3}
    for other in ((8, 1), (7, 8)):
        with pytest.raises(
            InputError, match="expected a temperature of step .*, got one of step 7"
        ):
            calibration.read_temperature(tmp_path, *other)
    path.write_text("{}")
    with pytest.raises(InputError, match="got a damaged file"):
        calibration.read_temperature(tmp_path, 7, 1)
