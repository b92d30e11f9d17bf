"""Metrics by subgroup: sex, age, localization, how the diagnosis was confirmed, image source."""

from typing import Any

import numpy as np
from jaxtyping import Bool

from jaxattn.evaluation import uncertainty
from jaxattn.evaluation.predictions import Predictions

#: A subgroup of fewer images says little: it is marked.
FEW = 30

#: Upper ends of the age bands, years; the last band is open.
AGES = (30, 45, 60, 75)

#: Resamples for a subgroup's intervals.
RESAMPLES = 2_000

UNKNOWN = "unknown"


def groups(found: Predictions) -> dict[str, dict[str, Bool[np.ndarray, " N"]]]:
    """The images of each subgroup, by variable and value; variables that are unknown are left out.

    Variables are the metadata, with ages in bands, and ``images of the lesion``: one or several.
    """
    variables: dict[str, np.ndarray] = {}
    for name, column in found.metadata.items():
        if name == "age":
            variables["age"] = np.array([_band(value) for value in column])
        else:
            variables[name.replace("_", " ")] = np.where(column == "", UNKNOWN, column)
    lesions = found.lesions
    several = np.bincount(lesions)[lesions] > 1
    variables["images of the lesion"] = np.where(several, "several", "one")
    table = {}
    for name, values in variables.items():
        known = [value for value in np.unique(values).tolist() if value != UNKNOWN]
        if known:
            listed = [*known, UNKNOWN] if UNKNOWN in values else known
            table[name] = {value: values == value for value in listed}
    return table


def measure(
    found: Predictions, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Metrics of each subgroup.

    Args:
        found: All images.
        resamples: Of the subgroup's lesions, for intervals.
        seed: Of the bootstrap.

    Returns:
        By variable and value: ``images``, ``lesions``, ``few`` (fewer than ``FEW`` images),
        ``classes`` present, ``accuracy``, ``balanced_accuracy`` and ``macro_auc`` (over the classes
        present, so that subgroups with other classes compare badly; None where undefined), and
        ``intervals`` of these.
    """
    return {
        variable: {
            value: _measure(found.take(inside), resamples, seed) for value, inside in values.items()
        }
        for variable, values in groups(found).items()
    }


def _measure(found: Predictions, resamples: int, seed: int) -> dict[str, Any]:
    values = uncertainty.summary(found, np.ones((1, len(found))))
    lesions = len(np.unique(found.lesions))
    row: dict[str, Any] = {
        "images": len(found),
        "lesions": lesions,
        "few": len(found) < FEW,
        "classes": len(np.unique(found.labels)),
        **{name: None if np.isnan(v[0]) else float(v[0]) for (name,), v in values.items()},
        "intervals": {},
    }
    if lesions > 1 and resamples:
        drawn = uncertainty.replicates(
            found, lambda w: uncertainty.summary(found, w), resamples, seed
        )
        row["intervals"] = {name: uncertainty.interval(v) for (name,), v in drawn.items()}
        everyone, right = np.ones(len(found), bool), found.labels == found.predictions
        row["intervals"]["accuracy"] = uncertainty.of_proportion(
            drawn["accuracy",], found.lesions, everyone, right
        )
    return row


def _band(age: str) -> str:
    """The age band of an age in years, given as text."""
    try:
        years = float(age)
    except ValueError:
        return UNKNOWN
    if np.isnan(years):
        return UNKNOWN
    starts = (0, *AGES)
    i = int(np.searchsorted(AGES, years, side="right"))
    return f"{starts[i]:02d}+" if i == len(AGES) else f"{starts[i]:02d}-{AGES[i] - 1}"
