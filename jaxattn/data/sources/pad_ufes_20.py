"""PAD-UFES-20: photographs of smartphones, six diagnoses, with patients.

Pacheco et al., "PAD-UFES-20: a skin lesion dataset composed of patient data and clinical images
collected from smartphones", Data in Brief 32:106221 (2020), doi:10.17632/zr7vgbcyr2.1:

* ``metadata.csv``: the file of each image, its diagnosis, patient, lesion, age, sex and region;
* ``imgs_part_1/``, ``imgs_part_2/``, ``imgs_part_3/``: the images, PNG.
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
    optional_text,
    sex,
    unique,
)
from jaxattn.data.tables import CsvRow, read_table
from jaxattn.errors import invalid, unknown

CLASS_NAMES = ("ack", "bcc", "mel", "nev", "scc", "sek")
CITATION = (
    "Pacheco, A.G.C., et al.: PAD-UFES-20: a skin lesion dataset composed of patient data and "
    "clinical images collected from smartphones. Data Brief 32, 106221 (2020). "
    "doi:10.1016/j.dib.2020.106221"
)

_COLUMNS = ("patient_id", "lesion_id", "diagnostic", "img_id")


def read(source: Path) -> SourceIndex:
    """Finds the images and their metadata.

    Args:
        source: Folder that holds the files above, at any depth; upper and lower case do not matter.

    Returns:
        The images that have both a file and a row, ordered by image_id, which is the file's name
        without its ending. Bowen's disease (BOD) is ``scc``, as published. ``dx_type`` is histo
        where there was a biopsy, and consensus elsewhere. Problems and notes as in `ham10000.read`.

    Raises:
        InputError: There is no table, or it is malformed.
    """
    if not source.is_dir():
        raise invalid("source", "a folder that holds PAD-UFES-20", source)
    table = find_csv(source, "metadata|pad-ufes-20|pad_20_metadata")
    if table is None:
        raise invalid(str(source), "PAD-UFES-20's metadata.csv", "none")
    problems: Findings = collections.defaultdict(dict)
    notes: Findings = collections.defaultdict(dict)
    rows = unique(read_table(table, _COLUMNS), "img_id", problems, notes)
    labelled = {Path(name).stem: _image(row) for name, row in rows.items()}
    images = find_images(source, r"imgs_part_\d|images")
    return build(
        source,
        labelled,
        images,
        problems,
        notes,
        name="pad_ufes_20",
        layout="mendeley",
        class_names=CLASS_NAMES,
        citation=CITATION,
    )


def _image(row: CsvRow) -> SourceImage:
    dx = {"bod": "scc"}.get(row["diagnostic"].lower(), row["diagnostic"].lower())
    if dx not in CLASS_NAMES:
        raise unknown(row.place("diagnostic"), row["diagnostic"], CLASS_NAMES)
    patient = row.text("patient_id")
    biopsied = row.fields.get("biopsed", "").lower()
    return SourceImage(
        image_id=Path(row["img_id"]).stem,
        lesion_id=f"{patient}_{row.text('lesion_id')}",
        dx=dx,
        dx_type={"true": "histo", "false": "consensus"}.get(biopsied, ""),
        age=age(row, "age"),
        sex=sex(row, "gender"),
        localization=optional_text(row, "region").lower(),
        patient_id=patient,
    )
