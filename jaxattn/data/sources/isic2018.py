"""ISIC 2018 Task 3: training, validation and test images, as many as there are in a folder.

Codella et al., arXiv:1902.03368 (2018). For each part, as far as it was downloaded:

* ``ISIC2018_Task3_{Training,Validation,Test}_Input/``: the images;
* ``ISIC2018_Task3_{Training,Validation,Test}_GroundTruth.csv``: one column for each class;
* ``ISIC2018_Task3_Training_LesionGroupings.csv``: which images of training show one lesion.

The training images are HAM10000. The Harvard Dataverse (doi:10.7910/DVN/DBW86T) hands the test part
out as ``ISIC2018_Task3_Test_Images/`` and ``ISIC2018_Task3_Test_GroundTruth.tab``, with the columns
of HAM10000's metadata. Without a table of lesions, each image of validation and testing counts as a
lesion of its own.
"""

import collections
import dataclasses
from pathlib import Path

from jaxattn.data.sources import ham10000
from jaxattn.data.sources.source_index import (
    Findings,
    SourceImage,
    SourceIndex,
    build,
    find_csv,
    find_images,
    one_hot,
    unique,
)
from jaxattn.data.tables import column_names, read_table
from jaxattn.errors import invalid

CITATION = (
    "Codella, N., et al.: Skin lesion analysis toward melanoma detection 2018: a challenge hosted "
    "by the International Skin Imaging Collaboration (ISIC). arXiv:1902.03368; "
) + ham10000.CITATION

_PARTS = {"train": "training", "validation": "validation", "test": "test"}


def read(source: Path) -> SourceIndex:
    """Finds the images and labels of each part.

    Args:
        source: Folder that holds the files above, at any depth; upper and lower case do not matter.

    Returns:
        The images that have both a file and a row, ordered by image_id, in HAM10000's classes.
        Problems and notes as in `ham10000.read`, and the note ``missing_part``.

    Raises:
        InputError: There is no table of labels, training has no table of lesions, or a table is
            malformed.
    """
    if not source.is_dir():
        raise invalid("source", "a folder that holds ISIC 2018 Task 3", source)
    problems: Findings = collections.defaultdict(dict)
    notes: Findings = collections.defaultdict(dict)
    labelled: dict[str, SourceImage] = {}
    for part, called in _PARTS.items():
        table = find_csv(source, f"isic2018_task3_{called}_groundtruth")
        if table is None:
            notes["missing_part"][part] = "has no table of labels"
            continue
        for image_id, image in _from_table(source, table, part, problems, notes).items():
            if image_id in labelled:
                parts = f"the {labelled[image_id].part} and the {part} part"
                problems["conflicting_rows"][image_id] = f"is in {parts}"
            labelled[image_id] = dataclasses.replace(image, part=part)
    if not labelled:
        example = "a table such as ISIC2018_Task3_Test_GroundTruth.csv"
        raise invalid(str(source), example, "none (python -m jaxattn.predict needs no labels)")
    kept = {k: v for k, v in labelled.items() if k not in problems["conflicting_rows"]}
    pattern = rf"isic2018_task3_({'|'.join(_PARTS.values())})_(input|images)"
    images = find_images(source, pattern)
    return build(
        source,
        kept,
        images,
        problems,
        notes,
        name="isic2018",
        layout="isic2018",
        class_names=ham10000.CLASS_NAMES,
        citation=CITATION,
    )


def _from_table(
    source: Path, table: Path, part: str, problems: Findings, notes: Findings
) -> dict[str, SourceImage]:
    onehot = tuple(name.upper() for name in ham10000.CLASS_NAMES)
    if "dx" in column_names(table, (*ham10000.METADATA, "image", *onehot)):
        return ham10000.from_metadata(table, problems, notes)
    if part == "train":
        return ham10000.from_isic2018(source, table, problems, notes)
    rows = unique(read_table(table, ("image", *onehot)), "image", problems, notes)
    return {
        name: SourceImage(image_id=name, lesion_id=name, dx=one_hot(row, onehot))
        for name, row in rows.items()
    }
