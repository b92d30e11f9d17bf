"""HAM10000 in its three public folder layouts.

Tschandl, Rosendahl, Kittler, "The HAM10000 dataset, a large collection of multi-source
dermatoscopic images of common pigmented skin lesions", Scientific Data 5:180161 (2018).

The same 10,015 images are public as

* ``kaggle`` and ``dataverse``: ``HAM10000_images_part_1/``, ``HAM10000_images_part_2/`` and
  ``HAM10000_metadata`` (``.csv`` with commas on Kaggle; with tabs, as ``.tab`` or without ending,
  on the Dataverse); the Dataverse adds
  ``HAM10000_segmentations_lesion_tschandl/`` with one mask per image;
* ``isic2018``: the training set of ISIC 2018 Task 3 (Codella et al., arXiv:1902.03368), with
  one-hot labels and a table that groups images by lesion; no age, sex or localization.
"""

import collections
from pathlib import Path

from jaxattn.data.sources.source_index import (
    Findings,
    SourceImage,
    SourceIndex,
    age,
    entries,
    find_csv,
    find_images,
    find_masks,
    is_unknown,
    one_hot,
    optional_text,
    sex,
    unique,
    with_files,
    without_empty,
)
from jaxattn.data.tables import CsvRow, read_table
from jaxattn.errors import invalid

CLASS_NAMES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
DX_TYPES = ("confocal", "consensus", "follow_up", "histo")
CITATION = (
    "Tschandl, P., Rosendahl, C., Kittler, H.: The HAM10000 dataset, a large collection of "
    "multi-source dermatoscopic images of common pigmented skin lesions. "
    "Sci. Data 5, 180161 (2018). doi:10.1038/sdata.2018.161"
)

#: The words of ISIC 2018 for how a diagnosis was confirmed.
CONFIRM_TYPES = {
    "histopathology": "histo",
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
}

#: The columns of the table of metadata.
METADATA = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
_METADATA = r"ham10000_metadata(\.(csv|tab|tsv|txt))?"
_TRUTH = "isic2018_task3_training_groundtruth"
_GROUPS = "isic2018_task3_training_lesiongroupings"
_IMAGE_FOLDERS = r"ham10000_images(_part_?[12])?|isic2018_task3_training_input"
_MASK_FOLDER = "ham10000_segmentations_lesion_tschandl"


def read(source: Path) -> SourceIndex:
    """Finds the images, labels, metadata and masks in a folder.

    Args:
        source: Folder in one of the layouts above; upper and lower case do not matter.

    Returns:
        The images that have both a file and a row, ordered by image_id, so that the three layouts
        give the same records. Problems: ``missing_image`` (a row without a file),
        ``unlabelled_image`` (a file without a row), ``conflicting_rows`` and
        ``conflicting_files`` (an image_id with two contents). Notes: ``repeated_rows`` and
        ``repeated_files`` (identical copies), ``without_mask``, ``mask_without_row``.

    Raises:
        InputError: The folder has none of the layouts or two, or a table is malformed.
    """
    if not source.is_dir():
        raise invalid("source", "a folder that holds HAM10000", source)
    layout, labelled, problems, notes = _read_tables(source)
    images = find_images(source, _IMAGE_FOLDERS)
    masks = find_masks(source, _MASK_FOLDER)
    if not images.paths:
        zipped = sorted(path.name for path in source.glob("*.zip"))
        raise invalid(
            str(source),
            "images in HAM10000_images_part_1 and HAM10000_images_part_2, in "
            "ISIC2018_Task3_Training_Input or beside the table",
            f"none; unpack {', '.join(zipped)} first" if zipped else "none",
        )
    return SourceIndex(
        name="ham10000",
        layout=layout,
        source=source,
        class_names=CLASS_NAMES,
        citation=CITATION,
        images=with_files(labelled, images, masks, problems, notes),
        problems=without_empty(problems),
        notes=without_empty(notes),
    )


def _read_tables(source: Path) -> tuple[str, dict[str, SourceImage], Findings, Findings]:
    metadata = entries(source, _METADATA, Path.is_file)
    truth = find_csv(source, _TRUTH)
    if metadata and truth:
        raise invalid(
            str(source), "one of the layouts", f"both {metadata[0].name} and {truth.name}"
        )
    problems: Findings = collections.defaultdict(dict)
    notes: Findings = collections.defaultdict(dict)
    if metadata:
        if len({path.read_bytes() for path in metadata}) > 1:
            names = " and ".join(path.name for path in metadata)
            raise invalid(str(source), "one table of metadata", f"{names} with different content")
        layout = "kaggle" if metadata[0].suffix == ".csv" else "dataverse"
        return layout, from_metadata(metadata[0], problems, notes), problems, notes
    if truth:
        return "isic2018", from_isic2018(source, truth, problems, notes), problems, notes
    raise invalid(
        str(source),
        "a table of labels: HAM10000_metadata.csv, HAM10000_metadata or "
        "ISIC2018_Task3_Training_GroundTruth.csv",
        "none",
    )


def from_metadata(path: Path, problems: Findings, notes: Findings) -> dict[str, SourceImage]:
    """The images of a table of metadata, without their files."""
    rows = unique(read_table(path, METADATA), "image_id", problems, notes)
    return {name: _from_metadata(row) for name, row in rows.items()}


def _from_metadata(row: CsvRow) -> SourceImage:
    return SourceImage(
        image_id=row.text("image_id"),
        lesion_id=row.text("lesion_id"),
        dx=row.choice("dx", CLASS_NAMES),
        dx_type="" if is_unknown(row["dx_type"]) else row.choice("dx_type", DX_TYPES),
        age=age(row, "age"),
        sex=sex(row),
        localization=optional_text(row, "localization"),
        image_source=optional_text(row, "dataset"),
    )


def from_isic2018(
    source: Path, truth: Path, problems: Findings, notes: Findings
) -> dict[str, SourceImage]:
    """The images of ISIC 2018 Task 3's training tables, without their files."""
    groups = find_csv(source, _GROUPS)
    if groups is None:
        # Images of one lesion must stay together: without this table every split leaks.
        raise invalid(
            str(source),
            f"ISIC2018_Task3_Training_LesionGroupings.csv beside {truth.name}, which says which "
            "images show the same lesion",
            "none",
        )
    onehot = tuple(name.upper() for name in CLASS_NAMES)
    labels = unique(read_table(truth, ("image", *onehot)), "image", problems, notes)
    columns = ("image", "lesion_id", "diagnosis_confirm_type")
    lesions = unique(read_table(groups, columns), "image", problems, notes)
    images = {}
    for image_id, row in labels.items():
        dx = one_hot(row, onehot)
        if image_id in problems["conflicting_rows"]:
            continue
        if image_id not in lesions:
            raise row.error("image", f"an image with a row in {groups}")
        group = lesions[image_id]
        confirmed = group["diagnosis_confirm_type"]
        images[image_id] = SourceImage(
            image_id=image_id,
            lesion_id=group.text("lesion_id"),
            dx=dx,
            dx_type=""
            if is_unknown(confirmed)
            else CONFIRM_TYPES[group.choice("diagnosis_confirm_type", CONFIRM_TYPES)],
        )
    return images
