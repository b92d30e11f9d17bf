"""BCN20000 as its authors hand it out on figshare.

Hernández-Pérez et al., "BCN20000: dermoscopic lesions in the wild", Scientific Data 11:641 (2024),
doi:10.6084/m9.figshare.24140028:

* ``bcn_20k_train.csv`` and ``bcn_20k_test.csv``: the file of each image, its diagnosis, lesion,
  age, part of the body and sex;
* ``BCN_20k_train/`` and ``BCN_20k_test/``: the images.

A table without diagnoses is left out.
"""

import collections
from pathlib import Path

from jaxattn.data.sources.source_index import (
    Findings,
    SourceImage,
    SourceIndex,
    age,
    build,
    find_csv,
    find_images,
    is_unknown,
    optional_text,
    sex,
    unique,
)
from jaxattn.data.tables import CsvRow, column_names, read_table
from jaxattn.errors import invalid, unknown

CLASS_NAMES = ("ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc", "ood")
CITATION = (
    "Hernández-Pérez, C., et al.: BCN20000: dermoscopic lesions in the wild. Sci. Data 11, 641 "
    "(2024). doi:10.1038/s41597-024-03387-w"
)

_PARTS = {"train": "train", "test": "test"}
_COLUMNS = ("bcn_filename", "diagnosis", "lesion_id")


def read(source: Path) -> SourceIndex:
    """Finds the images, diagnoses and metadata of each part that has diagnoses.

    Args:
        source: Folder that holds the files above, at any depth; upper and lower case do not matter.

    Returns:
        The images that have both a file and a row, ordered by image_id; the class ``ood`` (out of
        distribution) only if an image has it. Problems and notes as in `ham10000.read`, and the
        notes ``missing_part`` and ``without_lesion``.

    Raises:
        InputError: There is no table of diagnoses, or a table is malformed.
    """
    if not source.is_dir():
        raise invalid("source", "a folder that holds BCN20000", source)
    problems: Findings = collections.defaultdict(dict)
    notes: Findings = collections.defaultdict(dict)
    labelled: dict[str, SourceImage] = {}
    found = []
    for part in _PARTS:
        table = find_csv(source, f"bcn_?20k_{part}")
        if table is None or "diagnosis" not in column_names(table, _COLUMNS):
            notes["missing_part"][part] = "has no table of diagnoses"
            continue
        found.append(part)
        for name, row in unique(
            read_table(table, _COLUMNS), "bcn_filename", problems, notes
        ).items():
            image = _image(row, part)
            if is_unknown(row["diagnosis"]):
                problems["unlabelled_image"][image.image_id] = f"{row.place('diagnosis')} is empty"
            elif image.image_id in labelled:
                problems["conflicting_rows"][image.image_id] = f"{name} is in two rows"
            else:
                labelled[image.image_id] = image
                if image.lesion_id == image.image_id:
                    notes["without_lesion"][image.image_id] = "counts as a lesion of its own"
    if not labelled:
        raise invalid(str(source), "bcn_20k_train.csv with the column diagnosis", "none")
    kept = {k: v for k, v in labelled.items() if k not in problems["conflicting_rows"]}
    images = find_images(source, rf"bcn_?20k_({'|'.join(found)})")
    other = any(image.dx == "ood" for image in kept.values())
    return build(
        source,
        kept,
        images,
        problems,
        notes,
        name="bcn20000",
        layout="figshare",
        class_names=CLASS_NAMES if other else CLASS_NAMES[:-1],
        citation=CITATION,
    )


def _image(row: CsvRow, part: str) -> SourceImage:
    image_id = Path(row.text("bcn_filename")).stem
    dx = row["diagnosis"].lower()
    if dx not in CLASS_NAMES and not is_unknown(dx):
        raise unknown(row.place("diagnosis"), row["diagnosis"], CLASS_NAMES)
    return SourceImage(
        image_id=image_id,
        lesion_id=optional_text(row, "lesion_id") or image_id,
        dx=dx,
        age=age(row, "age_approx"),
        sex=sex(row),
        localization=optional_text(row, "anatom_site_general"),
        part=part,
    )
