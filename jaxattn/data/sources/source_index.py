"""What a folder of images and its tables hold, before any image is opened."""

import collections
import dataclasses
import filecmp
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxattn.data.sources.tables import CsvRow

#: The columns that every index has, and those that some have besides.
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

#: What tables say where nothing is known.
UNKNOWN = ("", "unknown")


@dataclasses.dataclass(frozen=True)
class Row:
    """One labelled image and what is known of it; the fields are those of an index."""

    image_id: str
    lesion_id: str
    dx: str
    dx_type: str = ""  # '' unknown
    age: float = math.nan  # years; NaN unknown
    sex: str = ""  # '' unknown
    localization: str = ""  # '' unknown
    part: str = ""  # of the official split: train, validation, test; '' none
    image: Path = Path()
    mask: Path | None = None
    # Masks of dermoscopic features by name, or superpixels and features, see `attributes`.
    attributes: Mapping[str, Path] = dataclasses.field(default_factory=dict)

    @property
    def has_mask(self) -> bool:
        """Whether there is a mask of the lesion."""
        return self.mask is not None

    @property
    def has_attributes(self) -> bool:
        """Whether dermoscopic features were marked, be there any or not."""
        return bool(self.attributes)


#: What was found, by kind: name of each (an image_id or a file) to what is to be said of it.
Findings = dict[str, dict[str, str]]


@dataclasses.dataclass
class SourceIndex:
    """The images that a source holds, and what was found on the way.

    Attributes:
        name: Name of the data set.
        layout: Which public release the source looks like.
        source: The folder.
        class_names: Names of the classes, in the order of their labels.
        citation: Whom to cite.
        rows: The images to use, in the order of their records.
        problems: What would be lost by going on; stops a run unless the user agrees to it.
        notes: What was found and does no harm.
    """

    name: str
    layout: str
    source: Path
    class_names: tuple[str, ...]
    citation: str
    rows: Sequence[Row]
    problems: Findings
    notes: Findings

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of its index: of the further ones, those of which something is known."""
        known = (name for name in FURTHER_COLUMNS if any(getattr(row, name) for row in self.rows))
        return (*INDEX_COLUMNS, *known)


@dataclasses.dataclass(frozen=True)
class Files:
    """Files by image_id.

    Attributes:
        paths: The first file of each image_id.
        copies: Further files of the same content: path to what it equals.
        conflicts: Image_ids that stand for two contents: image_id to the two files.
    """

    paths: Mapping[str, Path]
    copies: Mapping[str, str]
    conflicts: Mapping[str, str]


def find_files(paths: Iterable[Path], endings: Sequence[str]) -> Files:
    """Sorts the files of one kind by image_id.

    Unpacking the public archives leaves the same file in several places (a folder inside itself, a
    folder in two spellings): identical copies count once, different ones conflict.

    Args:
        paths: All that was found in the folders looked at.
        endings: Ends of the names looked for, lower case; a name without it is the image_id.

    Returns:
        The files.
    """
    found = collections.defaultdict(list)
    for path in sorted(paths):
        ending = next((end for end in endings if path.name.lower().endswith(end)), None)
        # "._x.jpg" and "__MACOSX/" are what macOS puts into archives beside the files.
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
    """What lies in a folder under a name, a regular expression in any case, sorted."""
    return [
        path
        for path in sorted(folder.iterdir())
        if re.fullmatch(pattern, path.name, re.IGNORECASE) and wanted(path)
    ]


def files(source: Path, folders: str) -> list[Path]:
    """Everything in the folders of that name, at any depth, and what lies at the top."""
    below = [path for at in entries(source, folders, Path.is_dir) for path in at.rglob("*")]
    return [path for path in [*source.iterdir(), *below] if path.is_file()]


def unique(
    lines: Sequence[CsvRow], key: str, problems: Findings, notes: Findings
) -> dict[str, CsvRow]:
    """Rows by image_id; those that say two things of one image are a problem and left out."""
    first: dict[str, CsvRow] = {}
    for line in lines:
        other = first.setdefault(line.text(key), line)
        if other is not line:
            found = notes if other.fields == line.fields else problems
            kind = "repeated_rows" if found is notes else "conflicting_rows"
            found[kind][line[key]] = f"{line.path}, rows {other.row} and {line.row}"
    return {name: line for name, line in first.items() if name not in problems["conflicting_rows"]}


def join(
    rows: Mapping[str, Row], images: Files, masks: Files, problems: Findings, notes: Findings
) -> list[Row]:
    """Rows with the files they describe; what has no counterpart is written down."""
    problems["conflicting_files"] = {**images.conflicts, **masks.conflicts}
    notes["repeated_files"] = {**images.copies, **masks.copies}
    # An image whose rows conflict has rows: it is one problem, not two.
    known = rows.keys() | problems["conflicting_rows"].keys()
    joined = []
    for image_id, row in sorted(rows.items()):
        if image_id not in images.paths:
            problems["missing_image"][image_id] = "has a row and no image file"
        elif image_id not in problems["conflicting_files"]:
            mask = masks.paths.get(image_id)
            if masks.paths and mask is None:
                notes["without_mask"][image_id] = "has no mask file"
            joined.append(dataclasses.replace(row, image=images.paths[image_id], mask=mask))
    for image_id in sorted(images.paths.keys() - known):
        problems["unlabelled_image"][image_id] = f"{images.paths[image_id]} has no row"
    for image_id in sorted(masks.paths.keys() - known):
        notes["mask_without_row"][image_id] = f"{masks.paths[image_id]} has no row"
    return joined


def age(line: CsvRow, field: str) -> float:
    """Years of age in a field, NaN where unknown."""
    unknown = line[field].lower() in (*UNKNOWN, "nan")
    return math.nan if unknown else line.number(field, 0, 130)


def sex(line: CsvRow) -> str:
    """The field ``sex``: female, male, or '' where unknown."""
    return "" if line["sex"] in UNKNOWN else line.choice("sex", ("female", "male"))
