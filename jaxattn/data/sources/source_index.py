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

#: The columns of every prepared data set's index.csv, and those that only some have.
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
FURTHER_COLUMNS: Mapping[str, Any] = {"part": np.str_, "has_attributes": np.bool_}

#: How tables say that something is unknown.
UNKNOWN = ("", "unknown")


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


def find_csv(source: Path, stem: str, folders: str) -> Path | None:
    """The first ``stem.csv`` at the top of a folder or in its folders of a name, None if none.

    Args:
        source: The folder.
        stem: A regular expression.
        folders: A regular expression.
    """
    for place in [source, *entries(source, folders, Path.is_dir)]:
        for path in entries(place, rf"{stem}\.csv", Path.is_file):
            return path
    return None


def files(source: Path, folders: str) -> list[Path]:
    """All files in the folders of a name, at any depth, and those at the top."""
    below = [path for at in entries(source, folders, Path.is_dir) for path in at.rglob("*")]
    return [path for path in [*source.iterdir(), *below] if path.is_file()]


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
    problems["conflicting_files"] = {**images.conflicts, **masks.conflicts}
    notes["repeated_files"] = {**images.copies, **masks.copies}
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


def without_empty(findings: Findings) -> Findings:
    """The kinds of findings that were found."""
    return {kind: found for kind, found in findings.items() if found}


def optional_text(row: CsvRow, field: str) -> str:
    """A field, '' if unknown."""
    return "" if row[field] in UNKNOWN else row[field]


def age(row: CsvRow, field: str) -> float:
    """Years of age in a field, NaN if unknown."""
    unknown = row[field].lower() in (*UNKNOWN, "nan")
    return math.nan if unknown else row.number(field, 0, 130)


def sex(row: CsvRow) -> str:
    """The field ``sex``: female, male, or '' if unknown."""
    return "" if row["sex"] in UNKNOWN else row.choice("sex", ("female", "male"))
