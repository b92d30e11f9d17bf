"""Images of one's own with a table: ``SOURCE/images/`` and a CSV that names their classes.

The table is the only one in the folder, or the one that ``table`` names; fields are separated by
commas, tabs or semicolons. Images lie anywhere in the folder; a folder ``masks`` holds lesion
masks, each named like its image, with or without ``_segmentation`` or ``_mask``.
"""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxattn.data.sources.image_folder import (
    PARTS,
    check_classes,
    image_ids,
    match_masks,
    split_masks,
)
from jaxattn.data.sources.source_index import (
    TABLES,
    Files,
    Findings,
    SourceImage,
    SourceIndex,
    age,
    build,
    is_unknown,
    optional_text,
    unique,
    walk,
)
from jaxattn.data.tables import CsvRow, column_names, read_table
from jaxattn.errors import invalid

#: Where no column is named: the first of these that the table has.
LIKELY: Mapping[str, Sequence[str]] = {
    "image": ("image_id", "image", "image_name", "img_id", "isic_id", "filename", "file", "path"),
    "label": ("label", "dx", "diagnosis", "class", "class_name", "target"),
    "group": ("lesion_id", "lesion", "group", "patient_id", "patient"),
    "part": ("split", "part"),
}
_SEXES = {"f": "female", "female": "female", "m": "male", "male": "male"}


def read(
    source: Path,
    *,
    table: str = "",
    image_column: str = "",
    label_column: str = "",
    group_column: str = "",
    part_column: str = "",
) -> SourceIndex:
    """Finds the images that a table names, and their classes.

    Args:
        source: The folder.
        table: The table's path, from the folder or from here; '' for the only one there is.
        image_column: Names images: a file's path in the folder, its name, or that without its
            ending. '' for the first of ``LIKELY`` that the table has; so are the others.
        label_column: Classes; an image without one is a problem.
        group_column: What must not be separated, lesions or patients. Without such a column, or
            where it is blank, an image is a group of its own.
        part_column: The official parts, if there are any: train, val or test.

    Returns:
        The images by image_id, as in `image_folder.read`. Classes are in alphabetical order. The
        columns ``age``, ``sex``, ``localization``, ``patient_id`` and ``image_source`` are taken if
        they are there. Problems and notes as in `ham10000.read`, and ``unlabelled_row`` and
        ``without_group``.

    Raises:
        InputError: There is no table or column, or the table is malformed.
    """
    if not source.is_dir():
        raise invalid("source", "a folder with images and a table", source)
    path = _table(source, table)
    given = {"image": image_column, "label": label_column}
    given |= {"group": group_column, "part": part_column}
    likely = [name for names in LIKELY.values() for name in names]
    columns = _columns(path, given, column_names(path, [*filter(None, given.values()), *likely]))
    problems: Findings = collections.defaultdict(dict)
    notes: Findings = collections.defaultdict(dict)
    found, masked = split_masks(source)
    rows = read_table(path, [*filter(None, columns.values())])
    files = _Files(source, found)
    paths = dict(zip(image_ids(source, found), found, strict=True))
    name_of = {path: name for name, path in paths.items()}
    labelled: dict[str, SourceImage] = {}
    for name, row in unique(rows, columns["image"], problems, notes).items():
        file = files.find(row, columns["image"])
        image_id = name_of[file] if file else Path(name).with_suffix("").as_posix()
        if is_unknown(row[columns["label"]]):
            problems["unlabelled_row"][name] = f"{row.place(columns['label'])} is empty"
            paths.pop(image_id, None)
        elif image_id in labelled:
            problems["conflicting_rows"][image_id] = f"{row.path}, row {row.row}: named twice"
        else:
            labelled[image_id] = _image(row, image_id, columns)
    if not columns["group"]:
        what = "has no column of lesions or patients: each image counts as one"
        notes["without_group"][str(path)] = f"{what} (--group-column=NAME)"
    return build(
        source,
        labelled,
        Files(paths, {}, {}),
        problems,
        notes,
        masks=match_masks(masked, labelled),
        name=source.resolve().name,
        layout=f"images and {path.name}",
        class_names=check_classes({image.dx for image in labelled.values()}, source),
        citation="",
    )


def find_tables(source: Path) -> list[Path]:
    """The tables of a folder, at the top or in the folders there."""
    endings = [ending for ending in TABLES if ending not in ("", ".txt")]
    depth = len(source.parts) + 2
    return [p for p in walk(source) if p.suffix.lower() in endings and len(p.parts) <= depth]


def _table(source: Path, given: str) -> Path:
    if given:
        path = next((p for p in (source / given, Path(given).expanduser()) if p.is_file()), None)
        if path is None:
            raise invalid("--table", f"a table in {source}", repr(given))
        return path
    tables = find_tables(source)
    if len(tables) != 1:
        names = ", ".join(path.name for path in tables[:5]) or "none"
        raise invalid(str(source), "one table of images and classes (--table=FILE)", names)
    return tables[0]


def _columns(path: Path, given: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The table's column of each kind, '' where it has none that it may do without."""
    columns = {}
    for kind, name in given.items():
        likely = next((column for column in LIKELY[kind] if column in names), "")
        columns[kind] = name.replace(" ", "_") or likely
        if name and columns[kind] not in names:
            raise invalid(f"--{kind}-column", f"a column of {path} ({', '.join(names)})", name)
        if not columns[kind] and kind in ("image", "label"):
            wanted = f"a column of {path} ({', '.join(names)})"
            raise invalid(f"--{kind}-column", wanted, "nothing, and none is called as usual")
    return columns


def _image(row: CsvRow, image_id: str, columns: Mapping[str, str]) -> SourceImage:
    part = ""
    if columns["part"] and not is_unknown(row[columns["part"]]):
        if row[columns["part"]].lower() not in PARTS:
            raise row.error(columns["part"], "train, val or test")
        part = PARTS[row[columns["part"]].lower()]
    group = optional_text(row, columns["group"]) if columns["group"] else ""
    return SourceImage(
        image_id=image_id,
        lesion_id=group or image_id,
        dx=row[columns["label"]],
        age=age(row, "age"),
        sex=_SEXES.get(row.fields.get("sex", "").lower(), ""),
        localization=optional_text(row, "localization"),
        patient_id=optional_text(row, "patient_id"),
        image_source=optional_text(row, "image_source"),
        part=part,
    )


class _Files:
    """Image files by what a table may call them."""

    def __init__(self, source: Path, paths: Sequence[Path]):
        self._by_name: dict[str, list[Path]] = collections.defaultdict(list)
        for path in paths:
            relative = path.relative_to(source)
            names = {relative.as_posix(), relative.with_suffix("").as_posix(), path.name, path.stem}
            for name in names:
                self._by_name[name].append(path)

    def find(self, row: CsvRow, column: str) -> Path | None:
        """The file that a row names, None if there is none.

        Raises:
            InputError: It names several.
        """
        found = self._by_name.get(row.text(column).replace("\\", "/").removeprefix("./"), [])
        if len(found) > 1:
            raise row.error(column, f"one image, not {found[0]} and {found[1]}")
        return found[0] if found else None
