"""The model's classes: a data set's, selected, merged, renamed and ordered."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from jaxattn.data import derived
from jaxattn.data.dataset import Dataset
from jaxattn.errors import invalid, unknown


def parse(given: Sequence[str], known: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Reads ``dataset.classes``.

    Args:
        given: Classes of the data set, or ``name=a+b`` to merge some under one name.
        known: The data set's classes.

    Returns:
        The data set's classes that make up each of the model's classes, in the given order.

    Raises:
        InputError: A class is unknown or given twice, or fewer than two are given.
    """
    if isinstance(given, str):
        raise invalid("dataset.classes", "a tuple of classes", repr(given))
    merged: dict[str, tuple[str, ...]] = {}
    used: set[str] = set()
    for entry in given:
        name, equals, rest = entry.replace(" ", "").partition("=")
        members = tuple(rest.split("+")) if equals else (name,)
        if not name or name in merged:
            raise invalid("dataset.classes", "a new name", repr(entry))
        for member in members:
            if member not in known:
                raise unknown("dataset.classes", member, known)
            if member in used:
                raise invalid("dataset.classes", "each class once", f"{member!r} twice")
            used.add(member)
        merged[name] = members
    if len(merged) < 2:
        raise invalid("dataset.classes", "two or more classes", tuple(given))
    return merged


def select(dataset: Dataset, given: Sequence[str]) -> Dataset:
    """The data set with the classes of ``dataset.classes`` only; logs what is kept and left out.

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
            raise invalid("dataset.classes", f"classes with images in {dataset.name}", repr(name))
    kept = ", ".join(f"{name} {count}" for name, count in zip(merged, counts, strict=True))
    left, left_counts = np.unique(dataset.labels[labels < 0], return_counts=True)
    out = ", ".join(
        f"{dataset.class_names[label]} {count}"
        for label, count in zip(left, left_counts, strict=True)
    )
    left_out = f"; left out: {out}" if out else ""
    logging.warning("%s: %s%s", dataset.name, kept, left_out)
