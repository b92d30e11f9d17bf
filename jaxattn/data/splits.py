"""Splits into training, validation and test part.

A split is ``{"train": rows, "validation": rows, "test": rows}``, with sorted int64 indices into a
data set's table. It depends on the image ids, not on the order of the records.
"""

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxattn import files
from jaxattn.data import duplicates as repeated
from jaxattn.data import leaks
from jaxattn.data.dataset import Dataset
from jaxattn.data.tables import read_table
from jaxattn.errors import invalid, listed, unknown
from jaxattn.reading import read_npz

Split = dict[str, Int[np.ndarray, " rows"]]
PARTS = ("train", "validation", "test")
STRATEGIES = ("lesion", "patient", "datta", "official", "folds", "file")


def make(
    dataset: Dataset,
    strategy: str = "lesion",
    *,
    seed: int = 0,
    test: float = 0.15,
    validation: float = 0.1,
    file: str = "",
    fold: int = 0,
    folds: int = 3,
    leak: str = "",
    duplicates: str = "report",
) -> Split:
    """Splits a data set so that no lesion is in two parts, unless a leak is asked for.

    Args:
        dataset: The data set.
        strategy: ``lesion``: lesions are drawn by class; ``patient``: patients are; ``datta``: as
            Datta et al. 2021, the test part is drawn by class from the lesions that have exactly
            one image; ``official``: the parts of the data set's challenge, the validation part
            drawn by class from the training part if there is none; ``folds``: as Gessert et al.
            2019, the lesions are cut by class into ``folds`` + 1 parts of one size, the first of
            which is the test part of every fold and another one each fold's validation part;
            ``file``: a CSV of image_id and split.
        seed: Seed of the draw.
        test: The test part, a fraction of the lesions (``lesion``) or of the lesions with one
            image (``datta``), in (0, 1).
        validation: The validation part, a fraction of the lesions that are not in the test part,
            in [0, 1); 0 for none: an ``official`` one is then trained with.
        file: The CSV of the strategy ``file``. With ``folds``, instead of a draw: a NumPy archive
            (.npz) of the indices ``test``, ``val0``, ``train0``, ``val1``, … into the images sorted
            by image_id, as Gessert et al. 2019 published them.
        fold: Which fold of ``folds``, from 0.
        folds: How many there are.
        leak: ``select_on_test``: the test part is the validation part as well (Datta et al. 2021);
            ``koefler``: the split of Köfler 2023 of a data set with its copies, see `leaks.copies`,
            whatever the other arguments; ``gessert``: ``folds`` are cut by image, not by lesion.
        duplicates: What is done about images of one photograph under several ids, see
            `jaxattn.data.duplicates`: ``report``: nothing here; ``together``: where parts are
            drawn, their lesions count as one; ``drop``: they are left out of training and
            validation if a later part has one.

    Returns:
        The rows of each of ``PARTS``. Images that the CSV does not name are in no part.

    Raises:
        InputError: An argument or the file is wrong, a class has too few lesions, or a lesion
            would be in two parts.
    """
    if strategy not in STRATEGIES:
        raise unknown("split.strategy", strategy, STRATEGIES)
    leaks.check(leak)
    if duplicates != "report":
        _check_duplicates(duplicates, strategy, file, leak)
    if duplicates == "drop":
        own = {"seed": seed, "test": test, "validation": validation, "file": file}
        given: dict[str, Any] = own | {"fold": fold, "folds": folds}
        return repeated.drop(dataset, make(dataset, strategy, **given))
    if strategy == "patient":
        dataset, strategy = _by_patient(dataset), "lesion"
    if duplicates == "together":
        dataset = _relabelled(dataset, repeated.groups(dataset))
    if leak == "koefler":
        return leaks.draw_koefler(dataset)
    if (leak == "gessert" or file.endswith(".npz")) and strategy != "folds":
        with_ = f"'folds' with split.leak={leak!r} and split.file={file!r}"
        raise invalid("split.strategy", with_, repr(strategy))
    if strategy == "folds":
        split = _folds(dataset, seed, fold, folds, file, leak)
        check(split, dataset, lesions=leak != "gessert")
        return split
    if strategy == "file":
        split = read(file, dataset, leak)
    else:
        for field, value, low in (("test", test, 1e-9), ("validation", validation, 0.0)):
            if not low <= value < 1:
                raise invalid(f"split.{field}", "a fraction in [0, 1)", value)
        if strategy == "official":
            split = _official(dataset, seed, validation, leak)
        else:
            split = _draw(dataset, strategy, seed, test, 0.0 if leak else validation)
    if leak:
        del split["validation"]
    check(split, dataset)
    return split | {"validation": split["test"]} if leak else split


def _check_duplicates(duplicates: str, strategy: str, file: str, leak: str) -> None:
    if duplicates not in repeated.ACTIONS:
        raise unknown("split.duplicates", duplicates, repeated.ACTIONS)
    if leak:
        raise invalid("split.duplicates", f"report with split.leak={leak!r}", repr(duplicates))
    if duplicates == "together" and (strategy in ("official", "file") or file):
        given = f"split.strategy={strategy!r}, whose parts are given"
        raise invalid("split.duplicates", f"report or drop with {given}", repr(duplicates))


def _by_patient(dataset: Dataset) -> Dataset:
    """The data set with patients for lesions; where a patient is unknown, the lesion stays."""
    if "patient_id" not in dataset.table:
        others = ", ".join(name for name in STRATEGIES if name != "patient")
        raise invalid(
            "split.strategy", f"one of {others} for {dataset.name}, without patients", "'patient'"
        )
    patients, lesions = dataset.table["patient_id"], dataset.table["lesion_id"]
    return _relabelled(dataset, np.where(patients == "", lesions, patients))


def _relabelled(dataset: Dataset, lesions: np.ndarray) -> Dataset:
    return dataclasses.replace(dataset, table={**dataset.table, "lesion_id": lesions})


def _official(dataset: Dataset, seed: int, validation: float, leak: str) -> Split:
    if "part" not in dataset.table:
        raise invalid(
            "split.strategy", f"lesion, datta, folds or file for {dataset.name}", "'official'"
        )
    part = dataset.table["part"]
    split = {name: np.flatnonzero(part == name) for name in PARTS}
    if leak:
        return split  # its validation part is another one
    if validation and not len(split["validation"]):
        # By the order of their ids, so that the draw is independent of the order of the records.
        rows = split["train"][np.argsort(dataset.table["image_id"][split["train"]])]
        chosen = _stratified(rows, dataset.labels, validation, seed, "validation", dataset)
        split["validation"] = np.sort(chosen)
        split["train"] = np.setdiff1d(split["train"], chosen)
    elif not validation:
        split["train"] = np.union1d(split["train"], split["validation"])
        split["validation"] = split["validation"][:0]
    return split


def _draw(dataset: Dataset, strategy: str, seed: int, test: float, validation: float) -> Split:
    # np.unique sorts, which makes the draw independent of the order of the records.
    lesions, first, lesion_of_row, images = np.unique(
        dataset.table["lesion_id"], return_index=True, return_inverse=True, return_counts=True
    )
    # The rarest class of each: a patient, unlike a lesion, may have several.
    counts = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    order = np.argsort(counts[dataset.labels], kind="stable")
    classes = dataset.labels[first]
    classes[lesion_of_row[order[::-1]]] = dataset.labels[order[::-1]]
    part = np.full(len(lesions), "train", dtype="<U10")
    pool = np.flatnonzero(images == 1) if strategy == "datta" else np.arange(len(lesions))
    part[_stratified(pool, classes, test, seed, "test", dataset)] = "test"
    if validation:
        rest = np.flatnonzero(part != "test")
        chosen = _stratified(rest, classes, validation, seed, "validation", dataset)
        part[chosen] = "validation"
    return {name: np.flatnonzero(part[lesion_of_row] == name) for name in PARTS}


def _folds(dataset: Dataset, seed: int, fold: int, folds: int, file: str, leak: str) -> Split:
    if leak in leaks.SELECT_ON_TEST:
        raise invalid("split.leak", "'gessert' or none with folds", repr(leak))
    if not 0 <= fold < folds:
        raise invalid("split.fold", f"0 to {folds - 1}", fold)
    if file:
        return _read_indices(Path(file).expanduser(), dataset, fold)
    ids = dataset.table["image_id" if leak else "lesion_id"]
    from sklearn.model_selection import StratifiedKFold  # imports slowly

    units, first, unit_of_row = np.unique(ids, return_index=True, return_inverse=True)
    classes = dataset.labels[first]
    counts = np.bincount(classes, minlength=len(dataset.class_names))
    if (counts[counts > 0] <= folds).any():
        counted = ", ".join(f"{c} {n}" for c, n in zip(dataset.class_names, counts, strict=True))
        raise invalid(
            "split.folds", f"fewer than the lesions or images of each class ({counted})", folds
        )
    part = np.empty(len(units), int)
    parts = StratifiedKFold(folds + 1, shuffle=True, random_state=seed).split(units, classes)
    for i, (_, chosen) in enumerate(parts):
        part[chosen] = i
    name_of = np.full(folds + 1, "train", dtype="<U10")
    name_of[[0, fold + 1]] = "test", "validation"
    return {name: np.flatnonzero(name_of[part][unit_of_row] == name) for name in PARTS}


def _read_indices(path: Path, dataset: Dataset, fold: int) -> Split:
    keys = {"train": f"train{fold}", "validation": f"val{fold}", "test": "test"}
    expected = f"an .npz of {', '.join(keys.values())}"
    arrays = read_npz(path, f"{expected} (split.file)")
    if not arrays.keys() >= set(keys.values()):
        raise invalid(f"{path} (split.file)", expected, f"{listed(list(arrays)) or 'nothing'}")
    indices = {}
    for name, key in keys.items():
        if arrays[key].ndim != 1 or arrays[key].dtype.kind not in "iu":
            given = f"{arrays[key].dtype} of shape {arrays[key].shape}"
            raise invalid(f"{path}, {key}", "a list of whole numbers", given)
        indices[name] = arrays[key].astype(np.int64)
    every = np.sort(np.concatenate(list(indices.values())))
    if not len(every) or not np.array_equal(every, np.arange(len(dataset))):
        raise invalid(
            str(path),
            f"each of the {len(dataset)} images of {dataset.name} once",
            f"{len(every)} indices" + f" from {every[0]} to {every[-1]}" * bool(len(every)),
        )
    order = np.argsort(dataset.table["image_id"], kind="stable")
    return {name: np.sort(order[chosen]) for name, chosen in indices.items()}


def _stratified(
    pool: np.ndarray, classes: np.ndarray, fraction: float, seed: int, name: str, dataset: Dataset
) -> np.ndarray:
    """Draws a fraction of the pool by class, with scikit-learn like the published code."""
    from sklearn.model_selection import train_test_split  # imports slowly

    try:
        return train_test_split(
            pool, test_size=fraction, stratify=classes[pool], random_state=seed
        )[1]
    except ValueError as error:
        counts = np.bincount(classes[pool], minlength=len(dataset.class_names))
        counted = ", ".join(f"{c} {n}" for c, n in zip(dataset.class_names, counts, strict=True))
        raise invalid(
            f"split.{name}",
            "at least 2 lesions of every class to draw from, and one of each in the part",
            f"{fraction} of too few lesions of {dataset.name} ({counted})",
        ) from error


def check(split: Mapping[str, np.ndarray], dataset: Dataset, lesions: bool = True) -> None:
    """Raises InputError if the training or test part is empty or a lesion is in two parts.

    Args:
        split: The split.
        dataset: What it splits.
        lesions: Whether to look at lesions.
    """
    for name in ("train", "test"):
        if not len(split[name]):
            raise invalid(f"split of {dataset.name}, {name} part", "images", "none")
    sides: dict[str, str] = {}
    for name, rows in split.items() if lesions else ():
        for lesion in np.unique(dataset.table["lesion_id"][rows]).tolist():
            if sides.setdefault(lesion, name) != name:
                raise invalid(
                    f"split of {dataset.name}",
                    f"all images of lesion {lesion} in one part",
                    f"some in the {sides[lesion]} and some in the {name} part",
                )


def write(path: Path, split: Mapping[str, np.ndarray], dataset: Dataset, leak: str = "") -> None:
    """Writes the split as a CSV (image_id, lesion_id, split), sorted, that `read` takes back.

    With a leak a further column ``leak`` names it; a validation part that is the test part is not
    written again.
    """
    table = dataset.table
    left_out = "validation" if leak in leaks.SELECT_ON_TEST else ""
    parts = {name: rows for name, rows in split.items() if name != left_out}
    lines = [
        (str(table["image_id"][row]), str(table["lesion_id"][row]), name, leak)
        for name, rows in parts.items()
        for row in rows
    ]
    columns = 4 if leak else 3
    with files.replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        header = ("image_id", "lesion_id", "split", "leak")
        writer.writerows(line[:columns] for line in [header, *sorted(lines)])


def read(path: str | Path, dataset: Dataset, leak: str = "") -> Split:
    """Reads a CSV of image_id and split (train, validation or val, test).

    Args:
        path: The file.
        dataset: What it splits.
        leak: If one of ``leaks.SELECT_ON_TEST``, the test part is the validation part as well.

    Raises:
        InputError: The file cannot be read, see `tables.read_table`; a split or an image is
            unknown, an image is named twice, or a column ``leak`` names another protocol.
    """
    if not path:
        raise invalid("split.file", "a CSV of image_id and split", "nothing")
    row_of = {image: row for row, image in enumerate(dataset.table["image_id"].tolist())}
    rows: dict[str, list[int]] = {name: [] for name in PARTS}
    seen: set[str] = set()
    for line in read_table(Path(path).expanduser(), ("image_id", "split")):
        if line.fields.get("leak", leak) not in (leak, ""):
            raise line.error("leak", f"{leak!r}, as in split.leak")
        image, part = line.text("image_id"), line.choice("split", (*PARTS, "val"))
        if image not in row_of:
            raise line.error("image_id", f"an image of {dataset.name}")
        if image in seen:
            raise line.error("image_id", "each image once")
        seen.add(image)
        rows["validation" if part == "val" else part].append(row_of[image])
    if leak in leaks.SELECT_ON_TEST:
        rows["validation"] = rows["test"]
    return {name: np.sort(np.asarray(chosen, dtype=np.int64)) for name, chosen in rows.items()}
