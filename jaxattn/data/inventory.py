"""What a folder of images and its tables hold, before any image is opened."""

import collections
import dataclasses
import filecmp
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


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
    image: Path = Path()
    mask: Path | None = None


#: What was found, by kind: name of each (an image_id or a file) to what is to be said of it.
Findings = dict[str, dict[str, str]]


@dataclasses.dataclass
class Inventory:
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
