"""ISIC 2020: the training images, benign or malignant, with patients.

Rotemberg et al., "A patient-centric dataset of images and metadata for identifying melanomas using
clinical context", Scientific Data 8:34 (2021). The labels of the test images are not public.

* ``ISIC_2020_Training_GroundTruth_v2.csv``, ``ISIC_2020_Training_GroundTruth.csv`` or, on Kaggle,
  ``train.csv``: the labels, twice: ``benign_malignant`` and ``target``; patients, and in ``_v2``
  lesions; without them each patient counts as one lesion;
* ``ISIC_2020_Training_JPEG/``, ``train/`` or, on Kaggle, ``jpeg/train/``: the images;
* ``ISIC_2020_Training_Duplicates.csv``, if there: pairs of images that show the same, which then
  count as one lesion.
"""

import collections
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from jaxattn.data.sources.source_index import (
    Findings,
    SourceImage,
    SourceIndex,
    age,
    build,
    find_csv,
    find_images,
    optional_text,
    sex,
    unique,
)
from jaxattn.data.tables import CsvRow, read_table
from jaxattn.errors import invalid

CLASS_NAMES = ("benign", "malignant")
CITATION = (
    "Rotemberg, V., et al.: A patient-centric dataset of images and metadata for identifying "
    "melanomas using clinical context. Sci. Data 8, 34 (2021). doi:10.1038/s41597-021-00815-z"
)

_TRUTH = ("isic_2020_training_groundtruth_v2", "isic_2020_training_groundtruth", "train")
_FOLDERS = r"isic_2020_training_(jpeg|input)|train"


def read(source: Path) -> SourceIndex:
    """Finds the images, labels, patients and lesions.

    Args:
        source: Folder that holds the files above, at any depth; upper and lower case do not matter.

    Returns:
        The images that have both a file and a row, ordered by image_id. Problems and notes as in
        `ham10000.read`, and the note ``listed_duplicate``.

    Raises:
        InputError: There is no table of labels, or a table is malformed or contradicts itself.
    """
    if not source.is_dir():
        raise invalid("source", "a folder that holds ISIC 2020", source)
    problems: Findings = collections.defaultdict(dict)
    notes: Findings = collections.defaultdict(dict)
    truth = next(filter(None, (find_csv(source, stem) for stem in _TRUTH)), None)
    if truth is None:
        example = "ISIC_2020_Training_GroundTruth_v2.csv or train.csv"
        raise invalid(str(source), f"a table of labels, {example}", "none")
    columns = ("image_name", "patient_id", "benign_malignant", "target")
    rows = unique(read_table(truth, columns), "image_name", problems, notes)
    labelled = _join(source, {name: _image(row) for name, row in rows.items()}, notes)
    images = find_images(source, _FOLDERS)
    return build(
        source,
        labelled,
        images,
        problems,
        notes,
        name="isic2020",
        layout="isic2020",
        class_names=CLASS_NAMES,
        citation=CITATION,
    )


def _image(row: CsvRow) -> SourceImage:
    dx = row.choice("benign_malignant", CLASS_NAMES)
    if row.number("target", 0, 1) != CLASS_NAMES.index(dx):
        raise row.error("target", f"{CLASS_NAMES.index(dx)}, as benign_malignant is {dx}")
    patient = row.text("patient_id")
    return SourceImage(
        image_id=row["image_name"],
        lesion_id=optional_text(row, "lesion_id") or patient,
        dx=dx,
        age=age(row, "age_approx"),
        sex=sex(row),
        localization=optional_text(row, "anatom_site_general_challenge"),
        patient_id=patient,
    )


def _join(
    source: Path, labelled: Mapping[str, SourceImage], notes: Findings
) -> dict[str, SourceImage]:
    """The images, those that the table of duplicates pairs under one lesion."""
    table = find_csv(source, "isic_2020_training_duplicates")
    joined = dict(labelled)
    for row in read_table(table, ("image_name_1", "image_name_2")) if table else ():
        first, second = row.text("image_name_1"), row.text("image_name_2")
        if first in joined and second in joined:
            gone, kept = joined[second].lesion_id, joined[first].lesion_id
            for name, image in joined.items() if gone != kept else ():
                if image.lesion_id == gone:
                    joined[name] = dataclasses.replace(image, lesion_id=kept)
            notes["listed_duplicate"][second] = f"shows the same as {first}"
    return joined
