"""Calibration of probabilities: NLL, Brier score, ECE, reliability curve, temperature scaling."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxattn.errors import invalid

#: The file in a run's folder that evaluation writes.
TEMPERATURE = "temperature.json"

#: Bins of equal width over the confidence in (0, 1], closed on the right (Guo et al. 2017).
BINS = 15

#: Smallest probability whose logarithm is taken.
FLOOR = 1e-12
#: Temperatures that are tried.
_RANGE = (0.05, 20.0)


def confidence(
    labels: Int[np.ndarray, " N"], probabilities: Float[np.ndarray, "N C"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """The largest probability of each image, whether it is the true class's, and its bin."""
    best = probabilities.argmax(axis=1)
    sure = np.take_along_axis(probabilities, best[:, None], axis=1)[:, 0].astype(np.float64)
    bins = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return sure, (best == labels).astype(np.float64), bins


def log_likelihood(
    labels: Int[np.ndarray, " N"], probabilities: Float[np.ndarray, "N C"]
) -> Float[np.ndarray, " N"]:
    """Log of the true class's probability, which counts as 1e-12 at least."""
    return np.log(np.clip(probabilities[np.arange(len(labels)), labels], FLOOR, None))


def brier(
    labels: Int[np.ndarray, " N"], probabilities: Float[np.ndarray, "N C"]
) -> Float[np.ndarray, " N"]:
    """Squared error of each image's probabilities, summed over the classes: in [0, 2]."""
    return ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)


def measure(
    labels: Int[np.ndarray, " N"], probabilities: Float[np.ndarray, "N C"]
) -> dict[str, Any]:
    """How well probabilities are calibrated.

    Args:
        labels: True class indices; at least one.
        probabilities: Of each class, a row per image.

    Returns:
        A dict that JSON can hold:

        - ``nll``: mean negative log likelihood of the true class, in nats.
        - ``brier``: mean over the images of ``Σ_c (p_c − y_c)²``, in [0, 2].
        - ``ece``: expected calibration error of the most probable class, ``Σ_b n_b/N |accuracy_b −
          confidence_b|`` over ``BINS`` bins of equal width (Guo et al. 2017, equation 3).
        - ``reliability``: ``confidence``, ``accuracy`` and ``images`` of each bin that has images.
    """
    sure, right, bins = confidence(labels, probabilities)
    counts = np.bincount(bins, minlength=BINS)
    sums = [np.bincount(bins, values, BINS) for values in (sure, right)]
    reliability = [
        {
            "confidence": float(sums[0][b] / counts[b]),
            "accuracy": float(sums[1][b] / counts[b]),
            "images": int(counts[b]),
        }
        for b in np.flatnonzero(counts)
    ]
    return {
        "nll": float(-log_likelihood(labels, probabilities).mean()),
        "brier": float(brier(labels, probabilities).mean()),
        "ece": float(np.abs(sums[1] - sums[0]).sum() / len(labels)),
        "reliability": reliability,
    }


def scale(probabilities: Float[np.ndarray, "N C"], temperature: float) -> np.ndarray:
    """Temperature scaling, ``softmax(log(p) / T)`` (Guo et al. 2017, equation 9).

    For a softmax's own output this is its logits divided by T. A mean over crops or test-time
    augmentation is scaled as it is.
    """
    logits = np.log(np.clip(np.asarray(probabilities, np.float64), FLOOR, None)) / temperature
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def fit_temperature(
    labels: Int[np.ndarray, " N"], probabilities: Float[np.ndarray, "N C"]
) -> float | None:
    """The temperature in [0.05, 20] with the least NLL; None without images.

    Args:
        labels: True class indices, of images that were neither trained nor tested with.
        probabilities: Of each class.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return None

    def nll(log_temperature: float) -> float:
        scaled = scale(probabilities, float(np.exp(log_temperature)))
        return float(-log_likelihood(labels, scaled).mean())

    low, high = np.log(_RANGE)
    found = minimize_scalar(nll, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def read_temperature(folder: Path, step: int, tta: int) -> float:
    """The temperature of a run, for the probabilities it was fitted to.

    Args:
        folder: The run's folder.
        step: Of the checkpoint that predicts.
        tta: Test-time augmentation that it predicts with.

    Raises:
        InputError: There is none, or that of another checkpoint or of other augmentation.
    """
    path = folder / TEMPERATURE
    command = f"python -m jaxattn.evaluate --run={folder}"
    if not path.is_file():
        raise invalid(str(path), f"the temperature that {command} fits on validation", "no file")
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        temperature, fitted = float(kept["temperature"]), (kept["step"], kept.get("tta", 1))
    except (ValueError, TypeError, KeyError) as error:
        raise invalid(
            str(path), "the JSON of an evaluation", f"a damaged file ({error})"
        ) from error
    if fitted != (step, tta):
        given = f"one of step {fitted[0]} with tta {fitted[1]}"
        raise invalid(str(path), f"a temperature of step {step} with tta {tta}", given)
    if not temperature > 0:
        raise invalid(f"{path}, temperature", "a number above 0", temperature)
    return temperature
