"""Protocols that leak test data; opt-in and always flagged.

``select_on_test`` (Datta et al. 2021) and ``koefler`` were published. ``gessert`` was not: the
folds that Gessert et al. 2019 released keep every lesion in one part.

``split.leak`` names one. The run's split.csv, evaluation and report name it too.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from jaxattn.data import derived, duplicates
from jaxattn.data.dataset import Dataset
from jaxattn.errors import invalid, unknown

#: What is wrong with each protocol.
LEAKS: Mapping[str, str] = {
    "": "",
    "select_on_test": "the validation part is the test part, so that the best checkpoint is "
    "chosen on the images it is tested on",
    "koefler": "images were copied before they were split, so that copies of one image are in "
    "training and in testing, and the best checkpoint is chosen on the test part",
    "gessert": "folds are cut by image, not by lesion, so that images of one lesion may be in "
    "training and in testing",
}

#: Protocols whose validation part is the test part.
SELECT_ON_TEST = ("select_on_test", "koefler")

#: The class whose images Köfler 2023 does not copy.
_NOT_COPIED = "nv"


def check(leak: str) -> None:
    """Raises InputError for an unknown protocol."""
    if leak not in LEAKS:
        raise unknown("split.leak", leak, filter(None, LEAKS))


def copies(dataset: Dataset, leak: str) -> Dataset:
    """The data set with the copies that a protocol makes before splitting.

    Args:
        dataset: The data set.
        leak: ``koefler``: a copy of each image that is not nv for every move of `derived.MOVES`
            (Köfler 2023); other protocols make none.

    Returns:
        The data set. A copy's image_id is ``IMAGE_ID+MOVE``; the further column ``source`` has the
        image_id of the original. Nothing is stored twice.

    Raises:
        InputError: Unknown protocol, or there is no class nv.
    """
    check(leak)
    if leak != "koefler":
        return dataset
    if _NOT_COPIED not in dataset.class_names:
        expected = f"a data set with class {_NOT_COPIED} for 'koefler'"
        raise invalid("split.leak", expected, dataset.name)
    copied = np.flatnonzero(dataset.labels != dataset.class_names.index(_NOT_COPIED))
    rows, moves = [np.arange(len(dataset))], ["same"] * len(dataset)
    for move in list(derived.MOVES)[1:]:
        rows.append(copied)
        moves += [move] * len(copied)
    row = np.concatenate(rows)
    source = dataset.table["image_id"][row]
    names = [
        image if move == "same" else f"{image}+{move}"
        for image, move in zip(source.tolist(), moves, strict=True)
    ]
    taken = derived.take(dataset, row, image_id=np.array(names), source=source)
    return dataclasses.replace(taken, records=derived.View(dataset.records, row, moves))


def draw_koefler(dataset: Dataset) -> dict[str, Int[np.ndarray, " rows"]]:
    """67 % of the copied data set for training and 33 % for testing, by class (Köfler 2023).

    The image order of the published draw is unknown; this draw sorts images by their ids.
    """
    from sklearn.model_selection import train_test_split  # imports slowly

    order = np.argsort(dataset.table["image_id"], kind="stable")
    train, test = train_test_split(
        order, test_size=0.33, stratify=dataset.labels[order], random_state=50
    )
    return {"train": np.sort(train), "validation": np.sort(test), "test": np.sort(test)}


def measure(dataset: Dataset, split: Mapping[str, Int[np.ndarray, " rows"]]) -> dict[str, float]:
    """How much of the test part is in the training part too.

    Returns:
        Shares of the test images, in [0, 1]: ``lesion``, whose lesion is in training, and
        ``image``, which are in training themselves, perhaps moved. Where the table has them,
        ``patient``, whose patient is in training; ``same_pixels``, which are in training under
        any name; and ``near_duplicate``, which look like one in training or are the same, see
        `jaxattn.data.hashes`.
    """
    table = dataset.table
    columns = {"lesion": table["lesion_id"], "image": table.get("source", table["image_id"])}
    if "patient_id" in table:
        # An unknown patient is no other's.
        known = table["patient_id"] != ""
        columns["patient"] = np.where(known, table["patient_id"], columns["image"])
    found = {
        name: float(np.isin(column[split["test"]], column[split["train"]]).mean())
        for name, column in columns.items()
    }
    # The moved copies of a protocol have the hashes of their originals, and are counted already.
    if duplicates.has_hashes(dataset) and "source" not in table:
        same, near = duplicates.find(dataset, split["test"], split["train"])
        found |= {"same_pixels": float(same.mean()), "near_duplicate": float(near.mean())}
    return found


def warning(leak: str, measured: Mapping[str, float]) -> str:
    """One sentence on what a protocol leaks, and how much."""
    return (
        f"split.leak={leak}: {LEAKS[leak]}; training has the lesion of "
        f"{measured['lesion']:.1%} of the test images and a copy of {measured['image']:.1%}"
    )
