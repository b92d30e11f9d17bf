"""ISIC 2016 and ISIC 2017 in the folders of the challenges.

Gutman et al., arXiv:1605.01397 (2016); Codella et al., arXiv:1710.05006 (2017). The folders are

* 2017: ``ISIC-2017_{Training,Validation,Test_v2}_Data/`` with images, superpixels and a table of
  age and sex; for each part ``..._Part1_GroundTruth/`` (lesion masks), ``..._Part2_GroundTruth/``
  (attributes) and ``..._Part3_GroundTruth.csv`` (diagnoses); and
  ``ISIC2018_Task2_Training_GroundTruth_v3/``, masks of five attributes for most of these images;
* 2016: ``ISBI2016_ISIC_Part{1,3,3B}_{Training,Test}_Data/``,
  ``ISBI2016_ISIC_Part1_{Training,Test}_GroundTruth/`` (lesion masks) and
  ``ISBI2016_ISIC_Part{3,3B}_{Training,Test}_GroundTruth.csv``, which has no header.

There are no lesion numbers: each image counts as its own lesion.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxattn.data.sources import attributes
from jaxattn.data.sources.source_index import (
    Findings,
    SourceImage,
    SourceIndex,
    age,
    files,
    find_csv,
    find_files,
    find_images,
    find_masks,
    sex,
    unique,
    with_files,
    without_empty,
)
from jaxattn.data.tables import CsvRow, read_table
from jaxattn.errors import invalid


@dataclasses.dataclass(frozen=True)
class Year:
    """File names of a challenge: regular expressions, with ``{}`` for a part.

    Attributes:
        class_names: The classes.
        citation: Whom to cite.
        parts: Each part of the official split, and its name in files.
        data: Folders of images and superpixels.
        masks: Folders of lesion masks.
        annotations: Folders of annotated superpixels.
        truth: Tables of diagnoses, without ``.csv``.
        header: The columns of such a table.
        has_header: Whether the table has a header.
    """

    class_names: tuple[str, ...]
    citation: str
    parts: Mapping[str, str]
    data: str
    masks: str
    annotations: str
    truth: str
    header: Sequence[str]
    has_header: bool


YEARS = {
    2016: Year(
        class_names=("benign", "malignant"),
        citation=(
            "Gutman, D., et al.: Skin lesion analysis toward melanoma detection: a challenge at "
            "the International Symposium on Biomedical Imaging (ISBI) 2016. arXiv:1605.01397"
        ),
        parts={"train": "training", "test": "test"},
        data="isbi2016_isic_part(1|3|3b)_{}_data",
        masks="isbi2016_isic_part(1_{0}_groundtruth|3b_{0}_data)",
        annotations="(?!)",  # none: those of 2016 are not of superpixels of these images
        truth="isbi2016_isic_part3b?_{}_groundtruth",
        header=("image_id", "diagnosis"),
        has_header=False,
    ),
    2017: Year(
        class_names=("melanoma", "seborrheic_keratosis", "nevus"),
        citation=(
            "Codella, N., et al.: Skin lesion analysis toward melanoma detection: a challenge at "
            "the 2017 International Symposium on Biomedical Imaging (ISBI). arXiv:1710.05006"
        ),
        parts={"train": "training", "validation": "validation", "test": "test(_v2)?"},
        data="isic-2017_{}_data",
        masks="isic-2017_{}_part1_groundtruth",
        annotations="isic-2017_{}_part2_groundtruth",
        truth="isic-2017_{}_part3_groundtruth",
        header=("image_id", "melanoma", "seborrheic_keratosis"),
        has_header=True,
    ),
}

_TASK2_2018 = r"isic2018_task2_training_groundtruth(_v\d)?"


def read(source: Path, year: int) -> SourceIndex:
    """Finds the images, diagnoses, masks and attributes in a folder.

    Args:
        source: Folder that holds the folders above; upper and lower case do not matter.
        year: 2016 or 2017.

    Returns:
        The images that have both a file and a row, ordered by image_id; problems and notes as in
        `ham10000.read`, and the notes ``without_attributes`` and ``missing_part`` (of the official
        split). Attributes are those of ISIC 2017 Part 2 if both of its files exist, else those of
        ISIC 2018.

    Raises:
        InputError: There is no such challenge or no table of its diagnoses, or one is malformed.
    """
    if year not in YEARS:
        raise invalid("year", "2016 or 2017", year)
    if not source.is_dir():
        raise invalid("source", f"a folder that holds ISIC {year}", source)
    names = YEARS[year]
    problems: Findings = collections.defaultdict(dict)
    notes: Findings = collections.defaultdict(dict)
    labelled = _read_tables(source, names, problems, notes)
    any_part = f"({'|'.join(names.parts.values())})"
    data = files(source, names.data.format(any_part))
    images = find_images(source, names.data.format(any_part))
    if not images.paths:
        raise invalid(str(source), f"images of ISIC {year} in its _Data folders", "none")
    masks = find_masks(source, names.masks.format(any_part))
    found = with_files(labelled, images, masks, problems, notes)
    annotated = _find_attributes(source, names.annotations.format(any_part), data)
    if annotated:
        found = [dataclasses.replace(i, attributes=annotated.get(i.image_id, {})) for i in found]
        lacking = (image.image_id for image in found if not image.attributes)
        notes["without_attributes"] = dict.fromkeys(lacking, "has no annotated attributes")
    return SourceIndex(
        name=f"isic{year}",
        layout=f"isic{year}",
        source=source,
        class_names=names.class_names,
        citation=names.citation,
        images=found,
        problems=without_empty(problems),
        notes=without_empty(notes),
    )


def _read_tables(
    source: Path, names: Year, problems: Findings, notes: Findings
) -> dict[str, SourceImage]:
    patients = _read_patients(source, names, problems, notes)
    images: dict[str, SourceImage] = {}
    for part, called in names.parts.items():
        stem = names.truth.format(called)
        table = find_csv(source, stem)
        if table is None:
            notes["missing_part"][part] = "has no table of diagnoses"
            continue
        rows = read_table(table, names.header, has_header=names.has_header)
        for image_id, row in unique(rows, "image_id", problems, notes).items():
            if image_id in images:
                parts = f"the {images[image_id].part} and the {part} part"
                problems["conflicting_rows"][image_id] = f"is in {parts}"
            patient = patients.get(image_id)
            images[image_id] = SourceImage(
                image_id=image_id,
                lesion_id=image_id,
                dx=_diagnosis(row),
                age=age(patient, "age_approximate") if patient else math.nan,
                sex=sex(patient) if patient else "",
                part=part,
            )
    if not images:
        example = "ISIC-2017_Training_Part3_GroundTruth.csv"
        if not names.has_header:
            example = "ISBI2016_ISIC_Part3_Training_GroundTruth.csv"
        raise invalid(str(source), f"a table of diagnoses such as {example}", "none")
    conflicting = problems["conflicting_rows"]
    return {name: image for name, image in images.items() if name not in conflicting}


def _diagnosis(row: CsvRow) -> str:
    if "diagnosis" in row.fields:  # 2016: in words for training, as a number for testing
        value = row["diagnosis"].lower()
        if value in YEARS[2016].class_names:
            return value
        if value not in ("0", "1", "0.0", "1.0"):
            raise row.error("diagnosis", "benign, malignant, 0 or 1")
        return YEARS[2016].class_names[int(float(value))]
    hot = row.hot(YEARS[2017].header[1:])
    if len(hot) > 1:
        raise invalid(f"{row.path}, row {row.row}", "one diagnosis", " and ".join(hot))
    return hot[0] if hot else "nevus"


def _read_patients(
    source: Path, names: Year, problems: Findings, notes: Findings
) -> dict[str, CsvRow]:
    """Age and sex by image_id, as far as there are tables."""
    patients: dict[str, CsvRow] = {}
    for called in names.parts.values():
        folder = names.data.format(called)
        for path in files(source, folder):
            if re.fullmatch(rf"{folder}_metadata\.csv", path.name, re.IGNORECASE):
                rows = read_table(path, ("image_id", "age_approximate", "sex"))
                patients |= unique(rows, "image_id", problems, notes)
    return patients


def _find_attributes(
    source: Path, annotations: str, data: Sequence[Path]
) -> dict[str, dict[str, Path]]:
    """The files for `attributes.encode` by image_id."""
    found: dict[str, dict[str, Path]] = collections.defaultdict(dict)
    masks = files(source, _TASK2_2018)
    for name in attributes.NAMES:
        for image_id, path in find_files(masks, (f"_attribute_{name}.png",)).paths.items():
            found[image_id][name] = path
    superpixels = find_files(data, ("_superpixels.png",)).paths
    for image_id, path in find_files(files(source, annotations), ("_features.json",)).paths.items():
        if image_id in superpixels:
            found[image_id] = {
                attributes.SUPERPIXELS: superpixels[image_id],
                attributes.ANNOTATIONS: path,
            }
    return dict(found)
