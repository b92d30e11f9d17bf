"""From a data set's classes to a model's: chosen, merged, renamed and put in order."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from jaxattn.data import derived
from jaxattn.data.dataset import Dataset
from jaxattn.errors import InputError, suggestion


def parse(given: Sequence[str], known: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Reads ``dataset.classes``.

    Args:
        given: Each a class of the data set, or ``name=a+b`` for some of them under one name.
        known: The data set's classes.

    Returns:
        The data set's classes that make up each of the model's, in the order given.

    Raises:
        InputError: A class is unknown or stands there twice, or fewer than two are given.
    """
    if isinstance(given, str):
        raise InputError(f"dataset.classes: {given!r} given, a tuple of classes wanted")
    merged: dict[str, tuple[str, ...]] = {}
    used: set[str] = set()
    for entry in given:
        name, equals, rest = entry.replace(" ", "").partition("=")
        members = tuple(rest.split("+")) if equals else (name,)
        if not name or name in merged:
            raise InputError(
                f"dataset.classes: {entry!r} given, a name that no other class has wanted"
            )
        for member in members:
            if member not in known:
                raise InputError(
                    f"dataset.classes: {member!r} given{suggestion(member, known)}"
                    + (f" (in {entry!r})" if equals else "")
                )
            if member in used:
                raise InputError(f"dataset.classes: {member!r} given twice, once wanted")
            used.add(member)
        merged[name] = members
    if len(merged) < 2:
        raise InputError(f"dataset.classes: {tuple(given)} given, two or more classes wanted")
    return merged


def select(dataset: Dataset, given: Sequence[str]) -> Dataset:
    """The data set with the classes of ``dataset.classes``; images of all others are left out.

    What is kept and what is left out is logged.

    Args:
        dataset: The data set.
        given: See `parse`; empty: the data set as it is.

    Raises:
        InputError: See `parse`; also where a class has no images.
    """
    if not given:
        return dataset
    merged = parse(given, dataset.class_names)
    new_label = np.full(len(dataset.class_names), -1, np.int32)
    for label, members in enumerate(merged.values()):
        new_label[[dataset.class_names.index(member) for member in members]] = label
    labels = new_label[dataset.labels]
    rows = np.flatnonzero(labels >= 0)
    _log(dataset, merged, labels)
    selected = derived.take(dataset, rows, label=labels[rows])
    return dataclasses.replace(selected, class_names=tuple(merged))


def _log(dataset: Dataset, merged: dict[str, tuple[str, ...]], labels: np.ndarray) -> None:
    counts = np.bincount(labels[labels >= 0], minlength=len(merged))
    for name, count in zip(merged, counts, strict=True):
        if not count:
            raise InputError(f"dataset.classes: {name!r} given, {dataset.name} has no image of it")
    kept = ", ".join(f"{name} {count}" for name, count in zip(merged, counts, strict=True))
    left, left_counts = np.unique(dataset.labels[labels < 0], return_counts=True)
    out = ", ".join(
        f"{dataset.class_names[label]} {count}"
        for label, count in zip(left, left_counts, strict=True)
    )
    logging.warning("%s: %s; left out: %s", dataset.name, kept, out or "nothing")
