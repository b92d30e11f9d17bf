"""The same photograph in two parts of a split, whatever its ids: found, kept together, or dropped.

Two images are duplicates if their pixels are equal, or near-duplicates if their perceptual hashes
are (see `jaxattn.data.hashes`), which ``python -m jaxattn.prepare`` stores.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Int

from jaxattn.data import hashes
from jaxattn.data.dataset import Dataset
from jaxattn.errors import invalid

#: What ``split.duplicates`` does about them: only says so, keeps them in one part, or leaves those
#: out of training and validation that a later part holds.
ACTIONS = ("report", "together", "drop")
_PARTS = ("train", "validation", "test")
_COLUMNS = ("pixel_hash", "perceptual_hash")


def has_hashes(dataset: Dataset) -> bool:
    """Whether a data set was prepared with hashes."""
    return all(column in dataset.table for column in _COLUMNS)


def pairs(
    dataset: Dataset, first: Int[np.ndarray, " n"], second: Int[np.ndarray, " m"]
) -> tuple[hashes.Pairs, hashes.Pairs]:
    """Pairs of rows, one of each set: with the same pixels; and near-duplicates, those included.

    An image that is in both sets is no pair with itself.
    """
    found = []
    for column, match in zip(_COLUMNS, (hashes.same, hashes.near), strict=True):
        values = dataset.table[column]
        i, j = match(values[first], values[second])
        rows, others = first[i], second[j]
        apart = rows != others
        found.append(hashes.Pairs(rows[apart], others[apart]))
    return found[0], found[1]


def find(
    dataset: Dataset, rows: Int[np.ndarray, " n"], others: Int[np.ndarray, " m"]
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Which rows have the same pixels as one of the others, and which at least look like one."""
    same, near = pairs(dataset, rows, others)
    return np.isin(rows, same.first), np.isin(rows, near.first)


def count(dataset: Dataset, split: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How many images of each part are in another part under another name.

    Returns:
        By ``PART, PART``: ``same_pixels`` and ``near_duplicate`` (further ones), numbers of pairs;
        only parts that share some. Empty without hashes.
    """
    found: dict[str, Any] = {}
    for one, other in itertools.combinations(_PARTS, 2) if has_hashes(dataset) else ():
        if np.array_equal(split[one], split[other]):
            continue  # a validation part that is the test part says so itself
        same, near = pairs(dataset, split[one], split[other])
        exact = len(same.first)
        further = len(near.first) - exact
        if exact or further:
            found[f"{one}, {other}"] = {"same_pixels": exact, "near_duplicate": further}
    return found


def describe(counts: Mapping[str, Mapping[str, int]]) -> str:
    """One sentence on what `count` found; '' for nothing."""
    said = []
    for parts, found in counts.items():
        one, other = parts.split(", ")
        exact, near = found["same_pixels"], found["near_duplicate"]
        said.append(
            f"{one} and {other} share {exact} photograph{'s' * (exact != 1)} under two ids"
            f" and {near} near-duplicate{'s' * (near != 1)}"
        )
    return "; ".join(said)


def warn(dataset: Dataset, counts: Mapping[str, Mapping[str, int]], action: str) -> None:
    """Logs one line on duplicates across parts, or that they cannot be looked for."""
    if dataset.fingerprint and not has_hashes(dataset):
        logging.warning(
            "%s: prepared by an older version, without hashes of its pixels: duplicates across "
            "parts are not looked for (python -m jaxattn.prepare --verify --out=DIR adds them)",
            dataset.name,
        )
    elif counts:
        hint = " (split.duplicates=together or drop)" if action == "report" else ""
        logging.warning("%s: %s%s", dataset.name, describe(counts), hint)


def groups(dataset: Dataset) -> np.ndarray:
    """Lesion ids in which lesions with duplicate images have one name, the first of theirs.

    Raises:
        InputError: The data set has no hashes.
    """
    _check_hashes(dataset, "together")
    from scipy.sparse import coo_array  # imports slowly
    from scipy.sparse.csgraph import connected_components

    rows = np.arange(len(dataset))
    _, near = pairs(dataset, rows, rows)
    names, lesion = np.unique(dataset.table["lesion_id"], return_inverse=True)
    links = lesion[near.first], lesion[near.second]
    graph = coo_array((np.ones(len(near.first)), links), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=False)
    first = np.unique(component, return_index=True)[1]
    return names[first[component[lesion]]]


def drop(dataset: Dataset, split: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The split without images of training whose lesion has a duplicate in validation or testing.

    Likewise of validation and testing. The test part stays whole.

    Raises:
        InputError: The data set has no hashes.
    """
    _check_hashes(dataset, "drop")
    lesions = dataset.table["lesion_id"]
    left, later = dict(split), split["test"]
    for part in ("validation", "train"):
        if np.array_equal(split[part], split["test"]):
            continue
        _, near = find(dataset, split[part], later)
        gone = lesions[split[part][near]]
        left[part] = split[part][~np.isin(lesions[split[part]], gone)]
        later = np.union1d(later, left[part])
        if len(gone):
            count = len(split[part]) - len(left[part])
            logging.warning("split.duplicates=drop: %d images left out of the %s part", count, part)
    return left


def _check_hashes(dataset: Dataset, action: str) -> None:
    if not has_hashes(dataset):
        expected = f"report for {dataset.name}, which has no hashes of its pixels"
        raise invalid("split.duplicates", expected, repr(action))
