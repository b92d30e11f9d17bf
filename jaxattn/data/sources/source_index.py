"""The images, labels and masks of a public folder, before any image is opened."""

import collections
import dataclasses
import filecmp
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxattn.data.tables import CsvRow
from jaxattn.errors import invalid, unknown

#: The columns of every prepared data set's index.csv, those that only some have, and those that
#: preparation adds, see `jaxattn.data.hashes`.
INDEX_COLUMNS = (
    "image_id",
    "lesion_id",
    "dx",
    "dx_type",
    "age",
    "sex",
    "localization",
    "has_mask",
)
FURTHER_COLUMNS: Mapping[str, Any] = {
    "part": np.str_,
    "patient_id": np.str_,
    "image_source": np.str_,
    "has_attributes": np.bool_,
}
HASH_COLUMNS = ("pixel_hash", "perceptual_hash")

#: How tables say that something is unknown, in lower case.
UNKNOWN = ("", "unknown", "nan", "na", "n/a", "none", "null")
#: Endings of images, and of tables.
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASKS = ("_segmentation", "_mask", "_seg")
TABLES = (".csv", ".tab", ".tsv", ".txt", "")


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One labelled image and its metadata; the fields are columns of the index."""

    image_id: str
    lesion_id: str
    dx: str
    dx_type: str = ""  # '' unknown
    age: float = math.nan  # years; NaN unknown
    sex: str = ""  # '' unknown
    localization: str = ""  # '' unknown
    part: str = ""  # of the official split: train, validation, test; '' none
    patient_id: str = ""  # '' unknown
    image_source: str = ""  # collection or device that the image is of; '' unknown
    path: Path = Path()
    mask: Path | None = None
    # Masks of dermoscopic attributes by name, or the files of ISIC 2017, see `attributes.encode`.
    attributes: Mapping[str, Path] = dataclasses.field(default_factory=dict)

    @property
    def has_mask(self) -> bool:
        """Whether there is a lesion mask."""
        return self.mask is not None

    @property
    def has_attributes(self) -> bool:
        """Whether dermoscopic attributes were annotated, even if none was found."""
        return bool(self.attributes)


#: What was found, by kind: an image_id or file to what to say about it.
Findings = dict[str, dict[str, str]]


@dataclasses.dataclass
class SourceIndex:
    """The images of a folder, and what was found while indexing it.

    Attributes:
        name: Name of the data set.
        layout: The public release that the folder matches.
        source: The folder.
        class_names: Names of the classes, in the order of their labels.
        citation: Whom to cite.
        images: The images to use, in the order of their records.
        problems: What would be lost by going on; stops a run unless the user accepts it.
        notes: What was found and does no harm.
    """

    name: str
    layout: str
    source: Path
    class_names: tuple[str, ...]
    citation: str
    images: Sequence[SourceImage]
    problems: Findings
    notes: Findings

    def check(self) -> None:
        """Raises InputError for names given twice; notes lesions with several diagnoses."""
        for what, names in (
            ("class", self.class_names),
            ("image_id", [image.image_id for image in self.images]),
        ):
            twice = [name for name, count in collections.Counter(names).items() if count > 1]
            if twice:
                raise invalid(str(self.source), f"each {what} once", f"{twice[0]!r} twice")
        diagnoses: dict[str, set[str]] = collections.defaultdict(set)
        for image in self.images:
            diagnoses[image.lesion_id].add(image.dx)
        several = {
            lesion: " and ".join(sorted(dx)) for lesion, dx in diagnoses.items() if len(dx) > 1
        }
        if several:
            self.notes["lesion_with_several_diagnoses"] = several

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of index.csv: all of ``INDEX_COLUMNS``, and further ones with any value."""
        known = (name for name in FURTHER_COLUMNS if any(getattr(i, name) for i in self.images))
        return (*INDEX_COLUMNS, *known)


@dataclasses.dataclass(frozen=True)
class Files:
    """Files by image_id.

    Attributes:
        paths: The first file of each image_id.
        copies: Further files with the same content: path to what it equals.
        conflicts: Image_ids with two contents: image_id to the two files.
    """

    paths: Mapping[str, Path]
    copies: Mapping[str, str]
    conflicts: Mapping[str, str]


def find_files(paths: Iterable[Path], endings: Sequence[str]) -> Files:
    """Groups the files of one kind by image_id.

    Unpacking the public archives leaves the same file in several places (a folder inside itself, a
    folder in two spellings): identical copies count once, different ones conflict.

    Args:
        paths: All files of the folders to look at.
        endings: Name endings to look for, lower case; a name without it is the image_id.
    """
    found = collections.defaultdict(list)
    for path in sorted(paths):
        ending = next((end for end in endings if path.name.lower().endswith(end)), None)
        # macOS puts "._x.jpg" and "__MACOSX/" into archives beside the files.
        if ending and path.name[0] != "." and "__MACOSX" not in path.parts:
            found[path.name[: -len(ending)]].append(path)
    first_of, copies, conflicts = {}, {}, {}
    for name, (first, *others) in found.items():
        first_of[name] = first
        for other in others:
            if filecmp.cmp(first, other, shallow=False):
                copies[str(other)] = f"same content as {first}"
            else:
                conflicts[name] = f"{first} and {other} differ"
    return Files(first_of, copies, conflicts)


def entries(folder: Path, pattern: str, wanted: Callable[[Path], bool]) -> list[Path]:
    """Entries of a folder whose name matches a regular expression in any case, sorted."""
    return [
        path
        for path in sorted(folder.iterdir())
        if re.fullmatch(pattern, path.name, re.IGNORECASE) and wanted(path)
    ]


def walk(source: Path) -> list[Path]:
    """All files of a folder, the shallowest first; not those that systems leave in folders."""
    found = [
        path
        for path in source.rglob("*")
        if path.name[0] != "." and "__MACOSX" not in path.parts and path.is_file()
    ]
    return sorted(found, key=lambda path: (len(path.parts), path))


def find_csv(source: Path, stem: str) -> Path | None:
    """The first table of a name in a folder, the one nearest to the top; None if there is none.

    Args:
        source: The folder.
        stem: A regular expression of the name without its ending, which is one of ``TABLES``.
    """
    endings = "|".join(re.escape(ending) for ending in TABLES)
    pattern = re.compile(rf"({stem})({endings})", re.IGNORECASE)
    return next((path for path in walk(source) if pattern.fullmatch(path.name)), None)


def files(source: Path, folders: str) -> list[Path]:
    """All files in the folders of a name, at any depth, and those at the top."""
    wanted = re.compile(folders, re.IGNORECASE)
    return [
        path
        for path in walk(source)
        if path.parent == source
        or any(wanted.fullmatch(part) for part in path.relative_to(source).parts[:-1])
    ]


def find_images(source: Path, folders: str) -> Files:
    """The images in the folders of a name and at the top: JPEG or PNG files that are no masks."""
    found = [path for path in files(source, folders) if not is_mask(path)]
    return find_files(found, (".jpg", ".jpeg", ".png"))


def find_masks(source: Path, folders: str) -> Files:
    """The masks in the folders of a name, whatever follows the image_id, and named ones at the top.

    ``ISIC_0000000_segmentation.png``, ``ISIC_0000000_mask.png`` and ``ISIC_0000000.png`` are masks
    of one image.
    """
    found = [path for path in files(source, folders) if path.parent != source or is_mask(path)]
    return find_files(found, (*(f"{end}.png" for end in MASKS), ".png"))


def is_mask(path: Path) -> bool:
    """Whether a file's name says that it is no image."""
    return path.stem.lower().endswith((*MASKS, "_superpixels"))


def note_unused(index: "SourceIndex") -> None:
    """Notes the folders with images or masks of which the index uses none."""
    used = {path for image in index.images for path in (image.path, image.mask) if path}
    used |= {path for image in index.images for path in image.attributes.values()}
    used_folders = {path.parent for path in used}
    kinds = [*index.problems.values(), *index.notes.values()]
    said = {name for kind in kinds for name in kind}
    left: dict[Path, list[Path]] = collections.defaultdict(list)
    for path in walk(index.source):
        if path.suffix.lower() in IMAGES and path.parent not in used_folders:
            left[path.parent].append(path)
    found = {
        str(folder): f"{len(paths)} image files, as {paths[0].name}, belong to no row"
        for folder, paths in left.items()
        if not any(str(path) in said or path.stem in said for path in paths)
    }
    if found:
        index.notes["unused_folder"] = found


def unique(
    rows: Sequence[CsvRow], key: str, problems: Findings, notes: Findings
) -> dict[str, CsvRow]:
    """Rows by image_id; rows that contradict each other are a problem and left out."""
    first: dict[str, CsvRow] = {}
    for row in rows:
        other = first.setdefault(row.text(key), row)
        if other is not row:
            found = notes if other.fields == row.fields else problems
            kind = "repeated_rows" if found is notes else "conflicting_rows"
            found[kind][row[key]] = f"{row.path}, rows {other.row} and {row.row}"
    return {name: row for name, row in first.items() if name not in problems["conflicting_rows"]}


def with_files(
    labelled: Mapping[str, SourceImage],
    images: Files,
    masks: Files,
    problems: Findings,
    notes: Findings,
) -> list[SourceImage]:
    """Adds the files of images and masks, in the order of image_ids; reports what has no match."""
    problems["conflicting_files"] |= {**images.conflicts, **masks.conflicts}
    notes["repeated_files"] |= {**images.copies, **masks.copies}
    # An image whose rows conflict has rows: it is one problem, not two.
    known = labelled.keys() | problems["conflicting_rows"].keys()
    found = []
    for image_id, image in sorted(labelled.items()):
        if image_id not in images.paths:
            problems["missing_image"][image_id] = "has a row and no image file"
        elif image_id not in problems["conflicting_files"]:
            mask = masks.paths.get(image_id)
            if masks.paths and mask is None:
                notes["without_mask"][image_id] = "has no mask file"
            found.append(dataclasses.replace(image, path=images.paths[image_id], mask=mask))
    for image_id in sorted(images.paths.keys() - known):
        problems["unlabelled_image"][image_id] = f"{images.paths[image_id]} has no row"
    for image_id in sorted(masks.paths.keys() - known):
        notes["mask_without_row"][image_id] = f"{masks.paths[image_id]} has no row"
    return found


def build(
    source: Path,
    labelled: Mapping[str, SourceImage],
    images: Files,
    problems: Findings,
    notes: Findings,
    *,
    masks: Files | None = None,
    **about: Any,
) -> SourceIndex:
    """The index of a folder whose images have no further files.

    Args:
        source: The folder.
        labelled: Images by image_id.
        images: Their files.
        problems: What was found; more is added.
        notes: Likewise.
        masks: Lesion masks.
        **about: ``name``, ``layout``, ``class_names`` and ``citation``.
    """
    found = with_files(labelled, images, masks or find_files([], ()), problems, notes)
    return SourceIndex(
        source=source,
        images=found,
        problems=without_empty(problems),
        notes=without_empty(notes),
        **about,
    )


def without_empty(findings: Findings) -> Findings:
    """The kinds of findings that were found."""
    return {kind: found for kind, found in findings.items() if found}


def is_unknown(text: str) -> bool:
    """Whether a field says that it is unknown."""
    return text.lower() in UNKNOWN


def optional_text(row: CsvRow, field: str) -> str:
    """A field, '' if unknown or not there."""
    text = row.fields.get(field, "")
    return "" if is_unknown(text) else text


def age(row: CsvRow, field: str) -> float:
    """Years of age in a field, NaN if unknown or not there."""
    return row.number(field, 0, 130) if optional_text(row, field) else math.nan


def sex(row: CsvRow, field: str = "sex") -> str:
    """A field's female or male in any case, '' if unknown or not there."""
    text = optional_text(row, field).lower()
    if text and text not in ("female", "male"):
        raise unknown(row.place(field), row[field], ("female", "male"))
    return text


def one_hot(row: CsvRow, columns: Sequence[str]) -> str:
    """The one of the columns that is 1, in lower case.

    Raises:
        InputError: None is, or several are.
    """
    hot = row.hot(columns)
    if len(hot) != 1:
        place = f"{row.path}, row {row.row}, {', '.join(columns)}"
        raise invalid(place, "exactly one class", ", ".join(hot) or "none")
    return hot[0].lower()
