"""Which image is for training, which for validation, which for testing.

A split is ``{"train": rows, "validation": rows, "test": rows}``, the rows sorted int64 indices into
a data set's table. It depends on the image ids only, not on the order of the records.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int
from sklearn.model_selection import StratifiedKFold, train_test_split

from jaxattn.data import leaks
from jaxattn.data.dataset import Dataset
from jaxattn.errors import InputError, suggestion

Split = dict[str, Int[np.ndarray, " rows"]]
PARTS = ("train", "validation", "test")
STRATEGIES = ("lesion", "datta", "official", "folds", "file")


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
) -> Split:
    """Splits a data set so that no lesion is on two sides, unless a leak is asked for.

    Args:
        dataset: The data set.
        strategy: ``lesion``: lesions are drawn by class; ``datta``: as Datta et al. 2021, the test
            part is drawn by class from the lesions that have exactly one image; ``official``: the
            parts of the data set's challenge, the validation part drawn by class from the training
            part where there is none; ``folds``: as Gessert et al. 2019, the lesions are cut by
            class into ``folds`` + 1 parts of one size, of which the first is the test part of every
            fold and another one each fold's validation part; ``file``: a CSV with the columns
            image_id and split says it.
        seed: Seed of the draw.
        test: The test part, a fraction of the lesions (``lesion``) or of the lesions with one
            image (``datta``), in (0, 1).
        validation: The validation part, a fraction of the lesions that are not in the test part,
            in [0, 1); 0 for none: an ``official`` one is then trained with.
        file: The CSV of the strategy ``file``. With ``folds`` and the leak ``gessert``: a NumPy
            archive (.npz) of the indices ``test``, ``val0``, ``train0``, ``val1``, … into the
            images sorted by image_id, instead of a draw.
        fold: Which fold of ``folds``, from 0.
        folds: How many there are.
        leak: ``select_on_test``: the test part is the validation part as well, as Datta et al. 2021
            had it, and no other is drawn; ``koefler``: the split of Köfler 2023, whatever the other
            arguments, of a data set with its copies, see `leaks.copies`; ``gessert``: ``folds`` are
            cut by images, wherever their lesions are.

    Returns:
        The rows of each of ``PARTS``. Images that the CSV does not name are in no part.

    Raises:
        InputError: An argument or the file is wrong, a class has too few lesions, or a lesion
            would be on two sides.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"split.strategy: {strategy!r} given{suggestion(strategy, STRATEGIES)}")
    leaks.check(leak)
    if leak == "koefler":
        return leaks.draw_koefler(dataset)
    if (leak == "gessert" or file.endswith(".npz")) and strategy != "folds":
        raise InputError(
            f"split.strategy: {strategy!r} given, with split.leak={leak!r} and split.file={file!r} "
            "'folds' wanted"
        )
    if strategy == "folds":
        split = _folds(dataset, seed, fold, folds, file, leak)
        check(split, dataset, lesions=leak != "gessert")
        return split
    if strategy == "file":
        split = read(file, dataset, leak)
    else:
        for field, value, low in (("test", test, 1e-9), ("validation", validation, 0.0)):
            if not low <= value < 1:
                raise InputError(f"split.{field}: {value} given, a fraction in [0, 1) wanted")
        if strategy == "official":
            split = _official(dataset, seed, validation, leak)
        else:
            split = _draw(dataset, strategy, seed, test, 0.0 if leak else validation)
    if leak:
        del split["validation"]
    check(split, dataset)
    return split | {"validation": split["test"]} if leak else split


def _official(dataset: Dataset, seed: int, validation: float, leak: str) -> Split:
    if "part" not in dataset.table:
        raise InputError(
            f"split.strategy: 'official' given, {dataset.name} has no official parts, "
            f"{', '.join(STRATEGIES[:2])} or file wanted"
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
    classes = dataset.labels[first]
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
        raise InputError(f"split.leak: {leak!r} given, 'gessert' or none wanted with folds")
    if not 0 <= fold < folds:
        raise InputError(f"split.fold: {fold} given, 0 to {folds - 1} wanted")
    if file:
        return _read_indices(Path(file), dataset, fold)
    ids = dataset.table["image_id" if leak else "lesion_id"]
    units, first, unit_of_row = np.unique(ids, return_index=True, return_inverse=True)
    classes = dataset.labels[first]
    counts = np.bincount(classes, minlength=len(dataset.class_names))
    if (counts[counts > 0] <= folds).any():
        listed = ", ".join(f"{c} {n}" for c, n in zip(dataset.class_names, counts, strict=True))
        raise InputError(
            f"split.folds: {folds} given, which makes {folds + 1} parts of {dataset.name}, but at "
            f"least as many of each class wanted ({listed} there)"
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
    try:
        with np.load(path) as archive:
            indices = {name: archive[key].astype(np.int64) for name, key in keys.items()}
    except (OSError, ValueError, KeyError) as error:
        wanted = ", ".join(keys.values())
        raise InputError(
            f"split.file: {path} given ({error}), an .npz of {wanted} wanted"
        ) from error
    every = np.sort(np.concatenate(list(indices.values())))
    if not np.array_equal(every, np.arange(len(dataset))):
        raise InputError(
            f"{path}: {len(every)} indices from {every.min()} to {every.max()} given, each of the "
            f"{len(dataset)} images of {dataset.name} once wanted"
        )
    order = np.argsort(dataset.table["image_id"], kind="stable")
    return {name: np.sort(order[chosen]) for name, chosen in indices.items()}


def _stratified(
    pool: np.ndarray, classes: np.ndarray, fraction: float, seed: int, name: str, dataset: Dataset
) -> np.ndarray:
    """Draws a fraction of the pool, by class, with scikit-learn as the published code does."""
    try:
        return train_test_split(
            pool, test_size=fraction, stratify=classes[pool], random_state=seed
        )[1]
    except ValueError as error:
        counts = np.bincount(classes[pool], minlength=len(dataset.class_names))
        listed = ", ".join(f"{c} {n}" for c, n in zip(dataset.class_names, counts, strict=True))
        raise InputError(
            f"split.{name}: {fraction} of the lesions of {dataset.name} by class given, but the "
            f"lesions to draw from are too few ({listed}); at least 2 of every class and one per "
            "class in the part wanted"
        ) from error


def check(split: Mapping[str, np.ndarray], dataset: Dataset, lesions: bool = True) -> None:
    """Raises InputError where the training or test part is empty or a lesion is on two sides.

    Args:
        split: The split.
        dataset: What it splits.
        lesions: Whether to look at lesions.
    """
    for name in ("train", "test"):
        if not len(split[name]):
            raise InputError(f"split of {dataset.name}: the {name} part is empty, images wanted")
    sides: dict[str, str] = {}
    for name, rows in split.items() if lesions else ():
        for lesion in np.unique(dataset.table["lesion_id"][rows]).tolist():
            if sides.setdefault(lesion, name) != name:
                raise InputError(
                    f"split of {dataset.name}: lesion {lesion} has images in the {sides[lesion]} "
                    f"and in the {name} part, all images of a lesion in one part wanted"
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
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        header = ("image_id", "lesion_id", "split", "leak")
        writer.writerows(line[:columns] for line in [header, *sorted(lines)])


def read(path: str | Path, dataset: Dataset, leak: str = "") -> Split:
    """Reads a CSV of image_id and split (train, validation or val, test).

    Args:
        path: The file.
        dataset: What it splits.
        leak: One of ``leaks.SELECT_ON_TEST``: the test part is the validation part as well.

    Raises:
        InputError: No such file, a column is missing, a split or an image is unknown, an image
            stands there twice, or a column ``leak`` names another one.
    """
    if not path or not Path(path).is_file():
        raise InputError(f"split.file: {str(path)!r} given, a CSV of image_id and split wanted")
    row_of = {image: row for row, image in enumerate(dataset.table["image_id"].tolist())}
    rows: dict[str, list[int]] = {name: [] for name in PARTS}
    seen: set[str] = set()
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"image_id", "split"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(
                f"{path}: columns {reader.fieldnames} given, {sorted(missing)} wanted as well"
            )
        for line in reader:
            image, given = line["image_id"], line["split"]
            name = {"val": "validation"}.get(given, given)
            where = f"{path}, line {reader.line_num}"
            if line.get("leak") and line["leak"] != leak:
                raise InputError(
                    f"{where}: leak {line['leak']!r} given, --config.split.leak={line['leak']} "
                    "wanted as well"
                )
            if name not in PARTS:
                raise InputError(f"{where}: split {given!r} given, one of {PARTS} wanted")
            if image not in row_of:
                raise InputError(f"{where}: image_id {image!r} is not in {dataset.name}")
            if image in seen:
                raise InputError(f"{where}: image_id {image!r} given twice, one line wanted")
            seen.add(image)
            rows[name].append(row_of[image])
    if leak in leaks.SELECT_ON_TEST:
        rows["validation"] = rows["test"]
    return {name: np.sort(np.asarray(chosen, dtype=np.int64)) for name, chosen in rows.items()}
