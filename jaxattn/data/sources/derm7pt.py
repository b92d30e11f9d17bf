"""The seven-point checklist data set (derm7pt, SPC) in its official folder.

Kawahara, Daneshvar, Argenziano, Hamarneh, "Seven-point checklist and skin lesion classification
using multitask multimodal neural nets", IEEE JBHI 23(2), 538-546 (2019). The folder holds

* ``meta/meta.csv``: a row for each of 1,011 cases, with its diagnosis and its dermoscopic image;
* ``meta/train_indexes.csv``, ``valid_indexes.csv`` and ``test_indexes.csv``: a column ``indexes``
  of positions in that table, from 0;
* ``images/``: the images, at the paths given in the table; the clinical ones are not used.

Tables may also be at the top.
"""

import collections
import dataclasses
from pathlib import Path

from jaxattn.data.sources.source_index import Findings, SourceImage, SourceIndex, optional_text, sex
from jaxattn.data.tables import CsvRow, read_table
from jaxattn.errors import invalid

#: HAM10000's without akiec, which has no case.
CLASS_NAMES = ("bcc", "bkl", "df", "mel", "nv", "vasc")
#: HAM10000's class for diagnoses that contain these words; other cases are left out.
DIAGNOSES = {
    "basal cell": "bcc",
    "nevus": "nv",
    "dermatofibroma": "df",
    "lentigo": "bkl",
    "melanoma": "mel",
    "seborrheic keratosis": "bkl",
    "vascular": "vasc",
}
CITATION = (
    "Kawahara, J., Daneshvar, S., Argenziano, G., Hamarneh, G.: Seven-point checklist and skin "
    "lesion classification using multitask multimodal neural nets. IEEE J. Biomed. Health Inform. "
    "23(2), 538-546 (2019). doi:10.1109/JBHI.2018.2824327"
)

_PARTS = {"train": "train", "valid": "validation", "test": "test"}


def read(source: Path) -> SourceIndex:
    """Finds the dermoscopic images of the cases, their classes and the official parts.

    Args:
        source: The official folder, ``release_v0``.

    Returns:
        The images in the order of the table; an image_id is the image's path below ``images/``
        without its ending, with underscores for slashes. Problems: ``missing_image``. Notes:
        ``other_diagnosis`` (left out, as published) and ``without_part``.

    Raises:
        InputError: A table is missing or malformed, or a case is in two parts.
    """
    if not (source / "images").is_dir():
        raise invalid("source", "derm7pt's official folder, with a folder images", source)
    columns = ("case_num", "diagnosis", "sex", "location", "derm")
    rows = read_table(_find_table(source, "meta"), columns)
    parts = _read_parts(source, len(rows))
    folder = source / "images"
    # Some names differ from the table's in upper and lower case.
    paths = {str(p.relative_to(folder)).lower(): p for p in folder.rglob("*") if p.is_file()}
    problems: Findings = collections.defaultdict(dict)
    notes: Findings = collections.defaultdict(dict)
    images = []
    for index, row in enumerate(rows):
        image = _from_row(row, parts.get(index, ""))
        path = paths.get(row["derm"].lower())
        if not image.dx:
            notes["other_diagnosis"][image.image_id] = row["diagnosis"]
        elif path is None:
            problems["missing_image"][image.image_id] = f"{folder / row['derm']} does not exist"
        else:
            images.append(dataclasses.replace(image, path=path))
            if not image.part:
                notes["without_part"][image.image_id] = "is in no index file"
    return SourceIndex(
        name="derm7pt",
        layout="release_v0",
        source=source,
        class_names=CLASS_NAMES,
        citation=CITATION,
        images=images,
        problems=dict(problems),
        notes=dict(notes),
    )


def class_of(diagnosis: str) -> str:
    """HAM10000's class of a diagnosis, '' if it has none."""
    return next((dx for words, dx in DIAGNOSES.items() if words in diagnosis.lower()), "")


def _from_row(row: CsvRow, part: str) -> SourceImage:
    return SourceImage(
        image_id=str(Path(row.text("derm")).with_suffix("")).replace("/", "_"),
        lesion_id=f"case_{row.text('case_num')}",
        dx=class_of(row.text("diagnosis")),
        sex=sex(row),
        localization=optional_text(row, "location"),
        part=part,
    )


def _read_parts(source: Path, cases: int) -> dict[int, str]:
    """The part of each case, by its position."""
    part_of: dict[int, str] = {}
    for name, part in _PARTS.items():
        for row in read_table(_find_table(source, f"{name}_indexes"), ("indexes",)):
            index = int(row.number("indexes", 0, cases - 1))
            if part_of.setdefault(index, part) != part:
                raise row.error("indexes", f"a case that is not in the {part_of[index]} part too")
    return part_of


def _find_table(source: Path, stem: str) -> Path:
    places = (source / "meta" / f"{stem}.csv", source / f"{stem}.csv")
    for path in places:
        if path.is_file():
            return path
    raise invalid(str(places[0]), "a table of derm7pt's official folder", "no such file")
