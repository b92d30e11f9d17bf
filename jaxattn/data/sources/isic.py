"""ISIC 2016 and ISIC 2017 in the folders of the challenges: three parts, masks, marked features.

Gutman et al., arXiv:1605.01397 (2016); Codella et al., arXiv:1710.05006 (2017). Looked for are

* 2017: ``ISIC-2017_{Training,Validation,Test_v2}_Data/`` with images, superpixels and a table of
  age and sex, and for each part ``..._Part1_GroundTruth/`` (masks of the lesion),
  ``..._Part2_GroundTruth/`` (features) and ``..._Part3_GroundTruth.csv`` (diagnoses); beside them
  ``ISIC2018_Task2_Training_GroundTruth_v3/``, masks of five features for most of these images;
* 2016: ``ISBI2016_ISIC_Part{1,3,3B}_{Training,Test}_Data/``,
  ``ISBI2016_ISIC_Part1_{Training,Test}_GroundTruth/`` (masks) and
  ``ISBI2016_ISIC_Part{3,3B}_{Training,Test}_GroundTruth.csv``, which has no header.

There are no lesion numbers: each image stands for a lesion of its own.
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
    Row,
    SourceIndex,
    age,
    entries,
    files,
    find_files,
    join,
    sex,
    unique,
)
from jaxattn.data.sources.tables import CsvRow, read_table
from jaxattn.errors import InputError


@dataclasses.dataclass(frozen=True)
class Year:
    """What a challenge's files are called: regular expressions, in which ``{}`` is a part.

    Attributes:
        class_names: The classes.
        citation: Whom to cite.
        parts: Each part of the official split, and how files call it.
        data: Folders of images and superpixels.
        masks: Folders of lesion masks.
        marks: Folders of marked features.
        truth: Tables of diagnoses, without ``.csv``.
        header: The columns of such a table.
        has_header: Whether it names them itself.
    """

    class_names: tuple[str, ...]
    citation: str
    parts: Mapping[str, str]
    data: str
    masks: str
    marks: str
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
        marks="(?!)",  # those of 2016 are no superpixels of its own images
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
        marks="isic-2017_{}_part2_groundtruth",
        truth="isic-2017_{}_part3_groundtruth",
        header=("image_id", "melanoma", "seborrheic_keratosis"),
        has_header=True,
    ),
}

_TASK2_2018 = r"isic2018_task2_training_groundtruth(_v\d)?"


def read(source: Path, year: int) -> SourceIndex:
    """Finds the images, diagnoses, masks and marked features in a folder.

    Args:
        source: Folder that holds those of this module's docstring, in upper or lower case.
        year: 2016 or 2017.

    Returns:
        The images that have both a file and a row, in the order of their image_id; problems and
        notes as in `ham10000.read`, and the notes ``without_attributes`` and ``missing_part`` (of
        the official split). Features are those of ISIC 2017 Part 2 where both of its files are
        there, else those of ISIC 2018.

    Raises:
        InputError: There is no such challenge or no table of its diagnoses, or one is malformed.
    """
    if year not in YEARS:
        raise InputError(f"year: {year} given, 2016 or 2017 wanted")
    if not source.is_dir():
        raise InputError(f"source {source} is no folder, wanted one that holds ISIC {year}")
    names = YEARS[year]
    problems: Findings = collections.defaultdict(dict)
    notes: Findings = collections.defaultdict(dict)
    rows = _read_tables(source, names, problems, notes)
    everywhere = "|".join(names.parts.values())
    data = files(source, names.data.format(f"({everywhere})"))
    images = find_files(data, (".jpg", ".jpeg"))
    if not images.paths:
        raise InputError(
            f"{source} holds no images of ISIC {year}, wanted them in its _Data folders"
        )
    masks = find_files(files(source, names.masks.format(f"({everywhere})")), ("_segmentation.png",))
    joined = join(rows, images, masks, problems, notes)
    marked = _attributes(source, names.marks.format(f"({everywhere})"), data)
    if marked:
        joined = [
            dataclasses.replace(row, attributes=marked.get(row.image_id, {})) for row in joined
        ]
        lacking = (row.image_id for row in joined if not row.attributes)
        notes["without_attributes"] = dict.fromkeys(lacking, "has no marked features")
    return SourceIndex(
        name=f"isic{year}",
        layout=f"isic{year}",
        source=source,
        class_names=names.class_names,
        citation=names.citation,
        rows=joined,
        problems={kind: found for kind, found in problems.items() if found},
        notes={kind: found for kind, found in notes.items() if found},
    )


def _read_tables(source: Path, names: Year, problems: Findings, notes: Findings) -> dict[str, Row]:
    people = _people(source, names, problems, notes)
    rows: dict[str, Row] = {}
    for part, called in names.parts.items():
        table = _table(source, names.truth.format(called))
        if table is None:
            notes["missing_part"][part] = "has no table of diagnoses"
            continue
        lines = read_table(table, names.header, has_header=names.has_header)
        for image_id, line in unique(lines, "image_id", problems, notes).items():
            if image_id in rows:
                parts = f"the {rows[image_id].part} and the {part} part"
                problems["conflicting_rows"][image_id] = f"stands in {parts}"
            known = people.get(image_id)
            rows[image_id] = Row(
                image_id=image_id,
                lesion_id=image_id,
                dx=_diagnosis(line),
                age=age(known, "age_approximate") if known else math.nan,
                sex=sex(known) if known else "",
                part=part,
            )
    if not rows:
        wanted = "ISIC-2017_Training_Part3_GroundTruth.csv"
        if not names.has_header:
            wanted = "ISBI2016_ISIC_Part3_Training_GroundTruth.csv"
        raise InputError(f"{source} holds no table of diagnoses, wanted {wanted}")
    return {name: row for name, row in rows.items() if name not in problems["conflicting_rows"]}


def _diagnosis(line: CsvRow) -> str:
    if "diagnosis" in line.fields:  # 2016: in words for training, as a number for testing
        value = line["diagnosis"].lower()
        if value in YEARS[2016].class_names:
            return value
        if value not in ("0", "1", "0.0", "1.0"):
            raise line.error("diagnosis", "benign, malignant, 0 or 1")
        return YEARS[2016].class_names[int(float(value))]
    hot = line.hot(YEARS[2017].header[1:])
    if len(hot) > 1:
        raise InputError(f"{line.path}, row {line.row}: given {' and '.join(hot)}, wanted one")
    return hot[0] if hot else "nevus"


def _people(source: Path, names: Year, problems: Findings, notes: Findings) -> dict[str, CsvRow]:
    """Age and sex by image_id, as far as there are tables of them."""
    people: dict[str, CsvRow] = {}
    for called in names.parts.values():
        folder = names.data.format(called)
        for path in files(source, folder):
            if re.fullmatch(rf"{folder}_metadata\.csv", path.name, re.IGNORECASE):
                lines = read_table(path, ("image_id", "age_approximate", "sex"))
                people |= unique(lines, "image_id", problems, notes)
    return people


def _attributes(source: Path, marks: str, data: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """The files of marked features by image_id."""
    found: dict[str, dict[str, Path]] = collections.defaultdict(dict)
    masks = files(source, _TASK2_2018)
    for name in attributes.NAMES:
        for image_id, path in find_files(masks, (f"_attribute_{name}.png",)).paths.items():
            found[image_id][name] = path
    superpixels = find_files(data, ("_superpixels.png",)).paths
    for image_id, path in find_files(files(source, marks), ("_features.json",)).paths.items():
        if image_id in superpixels:
            found[image_id] = {
                attributes.SUPERPIXELS: superpixels[image_id],
                attributes.MARKS: path,
            }
    return dict(found)


def _table(source: Path, stem: str) -> Path | None:
    """A CSV file by its name, at the top or in the folder of its name."""
    folders = [source, *entries(source, rf"{stem}(\.csv)?", Path.is_dir)]
    return next(
        (path for at in folders for path in entries(at, rf"{stem}\.csv", Path.is_file)), None
    )
