"""HAM10000 as it is handed out: three folder layouts, one inventory.

Tschandl, Rosendahl, Kittler, "The HAM10000 dataset, a large collection of multi-source
dermatoscopic images of common pigmented skin lesions", Scientific Data 5:180161 (2018).

The same 10,015 images are public as

* ``kaggle`` and ``dataverse``: ``HAM10000_images_part_1/``, ``HAM10000_images_part_2/`` and
  ``HAM10000_metadata`` (with ``.csv`` on Kaggle, without on the Dataverse), beside them on the
  Dataverse ``HAM10000_segmentations_lesion_tschandl/`` with one mask per image;
* ``isic2018``: the training set of ISIC 2018 Task 3 (Codella et al., arXiv:1902.03368), with
  one-hot labels and a table that groups images by lesion; no age, sex or localization.
"""

import collections
from collections.abc import Sequence
from pathlib import Path

from jaxattn.data.sources.source_index import (
    UNKNOWN,
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

CLASS_NAMES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
DX_TYPES = ("confocal", "consensus", "follow_up", "histo")
CITATION = (
    "Tschandl, P., Rosendahl, C., Kittler, H.: The HAM10000 dataset, a large collection of "
    "multi-source dermatoscopic images of common pigmented skin lesions. "
    "Sci. Data 5, 180161 (2018). doi:10.1038/sdata.2018.161"
)

#: How ISIC 2018 words the ways in which a diagnosis was confirmed.
CONFIRM_TYPES = {
    "histopathology": "histo",
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
}

_METADATA = r"ham10000_metadata(\.csv)?"
_TRUTH = "isic2018_task3_training_groundtruth"
_GROUPS = "isic2018_task3_training_lesiongroupings"
_IMAGE_FOLDERS = r"ham10000_images(_part_?[12])?|isic2018_task3_training_input"
_MASK_FOLDER = "ham10000_segmentations_lesion_tschandl"


def read(source: Path) -> SourceIndex:
    """Finds the images, labels, metadata and masks in a folder.

    Args:
        source: Folder in one of the layouts of this module's docstring. Names of its entries match
            in upper and lower case.

    Returns:
        The images that have both a file and a row, in the order of their image_id, so that the
        three layouts give the same records. Problems: ``missing_image`` (a row without a file),
        ``unlabelled_image`` (a file without a row), ``conflicting_rows`` and
        ``conflicting_files`` (an image_id with two contents). Notes: ``repeated_rows`` and
        ``repeated_files`` (identical copies), ``without_mask``, ``mask_without_row``.

    Raises:
        InputError: The folder is in none of the layouts or in two, or a table is malformed.
    """
    if not source.is_dir():
        raise InputError(f"source {source} is no folder, wanted one that holds HAM10000")
    layout, rows, problems, notes = _read_tables(source)
    images = find_files(files(source, _IMAGE_FOLDERS), (".jpg", ".jpeg"))
    masks = find_files(files(source, _MASK_FOLDER), ("_segmentation.png",))
    if not images.paths:
        zipped = sorted(path.name for path in source.glob("*.zip"))
        hint = f"; unpack {', '.join(zipped)} first" if zipped else ""
        raise InputError(
            f"{source} holds no images, wanted them in HAM10000_images_part_1 and "
            f"HAM10000_images_part_2, in ISIC2018_Task3_Training_Input or beside the table{hint}"
        )
    joined = join(rows, images, masks, problems, notes)
    return SourceIndex(
        name="ham10000",
        layout=layout,
        source=source,
        class_names=CLASS_NAMES,
        citation=CITATION,
        rows=joined,
        problems={kind: found for kind, found in problems.items() if found},
        notes={kind: found for kind, found in notes.items() if found},
    )


def _read_tables(source: Path) -> tuple[str, dict[str, Row], Findings, Findings]:
    metadata = entries(source, _METADATA, Path.is_file)
    truth = _table(source, _TRUTH)
    if metadata and truth:
        raise InputError(
            f"{source} holds both {metadata[0].name} and {truth.name}, wanted one of the layouts"
        )
    problems: Findings = collections.defaultdict(dict)
    notes: Findings = collections.defaultdict(dict)
    if metadata:
        if len({path.read_bytes() for path in metadata}) > 1:
            names = " and ".join(path.name for path in metadata)
            raise InputError(f"{source} holds {names} with different content, wanted one of them")
        columns = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
        lines = unique(read_table(metadata[0], columns), "image_id", problems, notes)
        layout = "kaggle" if metadata[0].suffix else "dataverse"
        return layout, {name: _metadata_row(line) for name, line in lines.items()}, problems, notes
    if truth:
        return "isic2018", _isic_rows(source, truth, problems, notes), problems, notes
    raise InputError(
        f"{source} holds no table of labels, wanted HAM10000_metadata.csv, HAM10000_metadata or "
        "ISIC2018_Task3_Training_GroundTruth.csv"
    )


def _metadata_row(line: CsvRow) -> Row:
    return Row(
        image_id=line.text("image_id"),
        lesion_id=line.text("lesion_id"),
        dx=line.choice("dx", CLASS_NAMES),
        dx_type="" if line["dx_type"] in UNKNOWN else line.choice("dx_type", DX_TYPES),
        age=age(line, "age"),
        sex=sex(line),
        localization="" if line["localization"] in UNKNOWN else line["localization"],
    )


def _isic_rows(source: Path, truth: Path, problems: Findings, notes: Findings) -> dict[str, Row]:
    groups = _table(source, _GROUPS)
    if groups is None:
        # Images of one lesion must not be split apart: without this table every split leaks.
        raise InputError(
            f"{source} holds no ISIC2018_Task3_Training_LesionGroupings.csv, wanted it beside "
            f"{truth.name}: it says which images show the same lesion"
        )
    onehot = tuple(name.upper() for name in CLASS_NAMES)
    labels = unique(read_table(truth, ("image", *onehot)), "image", problems, notes)
    columns = ("image", "lesion_id", "diagnosis_confirm_type")
    lesions = unique(read_table(groups, columns), "image", problems, notes)
    rows = {}
    for image_id, line in labels.items():
        dx = _onehot(line, onehot)
        if image_id in problems["conflicting_rows"]:
            continue
        if image_id not in lesions:
            raise line.error("image", f"an image that {groups} has a row for")
        group = lesions[image_id]
        confirmed = group["diagnosis_confirm_type"]
        rows[image_id] = Row(
            image_id=image_id,
            lesion_id=group.text("lesion_id"),
            dx=dx,
            dx_type=""
            if confirmed in UNKNOWN
            else CONFIRM_TYPES[group.choice("diagnosis_confirm_type", tuple(CONFIRM_TYPES))],
        )
    return rows


def _onehot(line: CsvRow, columns: Sequence[str]) -> str:
    hot = line.hot(columns)
    if len(hot) != 1:
        raise InputError(
            f"{line.path}, row {line.row}, {', '.join(columns)}: given {len(hot)} classes "
            f"({', '.join(hot) or 'none'}), wanted exactly one"
        )
    return hot[0].lower()


def _table(source: Path, stem: str) -> Path | None:
    """A CSV file by its name, at the top, in the folder of its name or of the labels."""
    folders = [source, *entries(source, f"{stem}|{_TRUTH}", Path.is_dir)]
    return next(
        (path for at in folders for path in entries(at, stem + r"\.csv", Path.is_file)), None
    )
