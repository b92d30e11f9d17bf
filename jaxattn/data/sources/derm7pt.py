"""The seven-point checklist data set (derm7pt, SPC) in its official folder.

Kawahara, Daneshvar, Argenziano, Hamarneh, "Seven-point checklist and skin lesion classification
using multitask multimodal neural nets", IEEE JBHI 23(2), 538-546 (2019). Looked for are

* ``meta/meta.csv``: a row for each of 1,011 cases, with its diagnosis and its dermoscopic image;
* ``meta/train_indexes.csv``, ``valid_indexes.csv`` and ``test_indexes.csv``: a column ``indexes``
  of positions in that table, from 0;
* ``images/``: the images, at the paths that the table gives; its clinical ones are not used.

Tables may also lie at the top.
"""

import collections
from collections.abc import Sequence
from pathlib import Path

from jaxattn.data.sources.source_index import UNKNOWN, Findings, Row, SourceIndex, sex
from jaxattn.data.sources.tables import CsvRow, read_table
from jaxattn.errors import InputError

#: HAM10000's without akiec, of which there is no case.
CLASS_NAMES = ("bcc", "bkl", "df", "mel", "nv", "vasc")
#: HAM10000's class for a diagnosis that holds these words; cases of other diagnoses are left out.
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
        without its ending, its slashes underscores. Problems: ``missing_image``. Notes:
        ``other_diagnosis`` (left out, as published) and ``without_part``.

    Raises:
        InputError: A table is missing or malformed, or a case stands in two parts.
    """
    if not (source / "images").is_dir():
        raise InputError(f"source {source} has no folder images, wanted derm7pt's official folder")
    lines = read_table(_table(source, "meta"), ("case_num", "diagnosis", "sex", "location", "derm"))
    parts = _parts(source, len(lines))
    images = source / "images"
    # Some names differ from the table's in upper and lower case.
    paths = {str(p.relative_to(images)).lower(): p for p in images.rglob("*") if p.is_file()}
    problems: Findings = collections.defaultdict(dict)
    notes: Findings = collections.defaultdict(dict)
    rows = []
    for index, line in enumerate(lines):
        row = _row(line, parts.get(index, ""))
        path = paths.get(line["derm"].lower())
        if not row.dx:
            notes["other_diagnosis"][row.image_id] = line["diagnosis"]
        elif path is None:
            problems["missing_image"][row.image_id] = f"{images / line['derm']} is not there"
        else:
            rows.append(Row(**{**vars(row), "image": path}))
            if not row.part:
                notes["without_part"][row.image_id] = "stands in no index file"
    return SourceIndex(
        name="derm7pt",
        layout="release_v0",
        source=source,
        class_names=CLASS_NAMES,
        citation=CITATION,
        rows=rows,
        problems=dict(problems),
        notes=dict(notes),
    )


def class_of(diagnosis: str) -> str:
    """HAM10000's class of a diagnosis, '' where there is none."""
    return next((dx for words, dx in DIAGNOSES.items() if words in diagnosis.lower()), "")


def _row(line: CsvRow, part: str) -> Row:
    return Row(
        image_id=str(Path(line.text("derm")).with_suffix("")).replace("/", "_"),
        lesion_id=f"case_{line.text('case_num')}",
        dx=class_of(line.text("diagnosis")),
        sex=sex(line),
        localization="" if line["location"] in UNKNOWN else line["location"],
        part=part,
    )


def _parts(source: Path, cases: int) -> dict[int, str]:
    part_of: dict[int, str] = {}
    for name, part in _PARTS.items():
        for line in read_table(_table(source, f"{name}_indexes"), ("indexes",)):
            index = int(line.number("indexes", 0, cases - 1))
            if part_of.setdefault(index, part) != part:
                raise line.error("indexes", f"a case that is not in the {part_of[index]} part too")
    return part_of


def _table(source: Path, stem: str) -> Path:
    places: Sequence[Path] = (source / "meta" / f"{stem}.csv", source / f"{stem}.csv")
    for path in places:
        if path.is_file():
            return path
    raise InputError(f"{places[0]}: no such file, wanted derm7pt's official folder")
