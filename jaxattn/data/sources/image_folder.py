"""Images of one's own in a folder for each class: ``SOURCE/CLASS/*.jpg``.

Above the classes there may be a folder for each part: ``SOURCE/{train,val,test}/CLASS/*.png``. A
folder ``masks`` anywhere holds lesion masks, each named like its image, with or without
``_segmentation`` or ``_mask``. Images are JPEG, PNG, BMP, TIFF or WebP. Which images show the same
lesion is not known: each counts as a lesion of its own. `image_table` reads a table that says so.
"""

import collections
from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxattn.data.sources.source_index import (
    IMAGES,
    MASKS,
    Files,
    Findings,
    SourceImage,
    SourceIndex,
    build,
    is_mask,
    walk,
)
from jaxattn.errors import invalid

#: Parts of an official split by the names of their folders.
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MASKS = ("mask", "masks", "segmentation", "segmentations")


def read(source: Path) -> SourceIndex:
    """Finds the images, and their classes and parts by the names of their folders.

    Args:
        source: The folder.

    Returns:
        The images by image_id: a file's name without its ending if all of these differ, else its
        path below the folder. Classes are in alphabetical order. Problems: ``conflicting_files``.
        Notes: ``without_class`` (beside the classes' folders), and those of masks.

    Raises:
        InputError: There are fewer than two classes, or two that differ in case only; or folders of
            parts stand beside folders of classes.
    """
    if not source.is_dir():
        raise invalid("source", "a folder with a folder for each class", source)
    found, masked = split_masks(source)
    problems: Findings = collections.defaultdict(dict)
    notes: Findings = collections.defaultdict(dict)
    names, in_parts = image_ids(source, found), _has_parts(source, found)
    labelled: dict[str, SourceImage] = {}
    paths: dict[str, Path] = {}
    for path, name in zip(found, names, strict=True):
        *folders, _ = path.relative_to(source).parts
        part = PARTS[folders.pop(0).lower()] if in_parts else ""
        if not folders:
            notes["without_class"][str(path)] = "lies in no folder of a class"
        elif name in paths:
            problems["conflicting_files"][name] = f"{paths[name]} and {path}"
        else:
            labelled[name] = SourceImage(image_id=name, lesion_id=name, dx=folders[0], part=part)
            paths[name] = path
    classes = check_classes({image.dx for image in labelled.values()}, source)
    return build(
        source,
        labelled,
        Files(paths, {}, {}),
        problems,
        notes,
        masks=match_masks(masked, labelled),
        name=source.resolve().name,
        layout="a folder for each class",
        class_names=classes,
        citation="",
    )


def split_masks(source: Path) -> tuple[list[Path], list[Path]]:
    """The image files of a folder, and those of them that lie in a folder of masks."""
    files = [path for path in walk(source) if path.suffix.lower() in IMAGES]
    masks = {
        path
        for path in files
        if is_mask(path) or any(p.lower() in _MASKS for p in path.relative_to(source).parts[:-1])
    }
    return [path for path in files if path not in masks], sorted(masks)


def image_ids(source: Path, paths: Sequence[Path]) -> list[str]:
    """The names of files without their endings, if all differ, else their paths below a folder."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [path.relative_to(source).with_suffix("").as_posix() for path in paths]


def match_masks(paths: Sequence[Path], image_ids: Iterable[str]) -> Files:
    """Masks by image_id; a mask of no image is kept under its own name, to be reported."""
    known = {name.rpartition("/")[2]: name for name in image_ids}
    found: dict[str, Path] = {}
    conflicts: dict[str, str] = {}
    for path in paths:
        stems = [path.stem, *(path.stem.removesuffix(end) for end in MASKS)]
        name = next((known[stem] for stem in stems if stem in known), path.stem)
        if found.setdefault(name, path) != path:
            conflicts[name] = f"{found[name]} and {path} are both its mask"
    return Files(found, {}, conflicts)


def check_classes(found: Iterable[str], source: Path) -> tuple[str, ...]:
    """The classes in alphabetical order.

    Raises:
        InputError: There are fewer than two, or two that differ in case only.
    """
    classes = tuple(sorted(found))
    if len(classes) < 2:
        given = f"{len(classes)} ({', '.join(classes)})" if classes else "none"
        hint = "python -m jaxattn.predict needs no labels"
        raise invalid(str(source), "images of two classes or more", f"{given}; {hint}")
    for one, other in zip(classes, sorted(classes, key=str.lower)[1:], strict=False):
        if one.lower() == other.lower():
            raise invalid(str(source), "classes that differ in more than case", f"{one}, {other}")
    return classes


def _has_parts(source: Path, paths: Sequence[Path]) -> bool:
    """Whether the folders at the top are parts and not classes."""
    top = {path.relative_to(source).parts[0] for path in paths if path.parent != source}
    parts = {name for name in top if name.lower() in PARTS}
    if parts and parts != top:
        given = f"{', '.join(sorted(parts))} beside {', '.join(sorted(top - parts)[:5])}"
        raise invalid(str(source), "folders of parts or of classes", given)
    return bool(parts)
