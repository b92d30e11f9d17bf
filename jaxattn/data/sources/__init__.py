"""Public image folders as their authors hand them out, and one's own, each with a reader.

To add one, register a function that finds its images, labels and masks;
``python -m jaxattn.prepare --dataset=mine --plugin=MODULE`` then writes a prepared data set::

    @SOURCES.register("mine")
    def read(source: Path) -> SourceIndex: ...
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from jaxattn.data.sources import (
    bcn20000,
    derm7pt,
    ham10000,
    image_folder,
    image_table,
    isic,
    isic2018,
    isic2019,
    isic2020,
    pad_ufes_20,
)
from jaxattn.data.sources.source_index import SourceIndex, walk
from jaxattn.errors import InputError, invalid
from jaxattn.registry import Registry

#: Readers by the name of the data set: ``folder -> SourceIndex``. They open no image.
SOURCES: Registry[Callable[..., SourceIndex]] = Registry("--dataset")
SOURCES |= {
    "ham10000": ham10000.read,
    "isic2016": functools.partial(isic.read, year=2016),
    "isic2017": functools.partial(isic.read, year=2017),
    "isic2018": isic2018.read,
    "isic2019": isic2019.read,
    "isic2020": isic2020.read,
    "bcn20000": bcn20000.read,
    "derm7pt": derm7pt.read,
    "pad_ufes_20": pad_ufes_20.read,
    "folder": image_folder.read,
    "table": image_table.read,
}

#: What gives a data set away: the name of a folder or file in it, in any case.
_MARKS = {
    "isic2018": r"isic2018_task3_(validation|test)_(input|images|groundtruth.*)",
    "ham10000": r"ham10000_metadata.*|isic2018_task3_training_groundtruth\.csv",
    "isic2019": r"isic_2019_(training|test)_(input|groundtruth\.csv|metadata\.csv)",
    "isic2020": r"isic_2020_training_.*",
    "isic2017": r"isic-2017_.*_(data|part3_groundtruth\.csv)",
    "isic2016": r"isbi2016_isic_part.*",
    "bcn20000": r"bcn_?20k_(train|test)(\.csv)?",
    "derm7pt": r"(train|valid|test)_indexes\.csv",
    "pad_ufes_20": r"imgs_part_[123]",
}


def read(dataset: str, source: Path, options: Mapping[str, str]) -> SourceIndex:
    """The images of a folder.

    Args:
        dataset: A name of ``SOURCES``, or auto for what `recognise` says.
        source: The folder.
        options: Of the reader, see `image_table.read`.

    Raises:
        InputError: The reader has no such option, or see the reader; if the folder looks like
            another data set, its name.
    """
    if dataset == "auto":
        dataset = recognise(source)
        if not dataset:
            known = ", ".join(SOURCES)
            raise invalid("--dataset", f"one of {known}", f"{source}, which looks like none")
    reader = SOURCES[dataset]
    for name in options:
        if name not in inspect.signature(reader).parameters:
            flag = f"--{name.replace('_', '-')}"
            raise invalid(flag, "nothing, or --dataset=table", f"a value for --dataset={dataset}")
    try:
        return reader(source, **options)
    except InputError as error:
        likely = recognise(source)
        if not likely or likely == dataset:
            raise
        hint = f"it looks like {likely}: python -m jaxattn.prepare --dataset={likely}"
        raise InputError(f"{error}; {hint}") from error


def recognise(source: Path) -> str:
    """The data set that a folder looks like, by the names in it; '' if it looks like none."""
    if not source.is_dir():
        return ""
    files = walk(source)
    depth = len(source.parts)
    names = {part.lower() for path in files for part in path.parts[depth : depth + 3]}
    for dataset, mark in _MARKS.items():
        if any(re.fullmatch(mark, name) for name in names):
            return dataset
    if image_table.find_tables(source):
        return "table"
    images, _ = image_folder.split_masks(source)
    return "folder" if any(path.parent != source for path in images) else ""
