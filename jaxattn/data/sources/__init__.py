"""Public image folders as their authors hand them out, each with a reader.

To add one, register a function that finds its images, labels and masks;
``python -m jaxattn.prepare --dataset=mine --plugin=MODULE`` then writes a prepared data set::

    @SOURCES.register("mine")
    def read(source: Path) -> SourceIndex: ...
"""

import functools
from collections.abc import Callable
from pathlib import Path

from jaxattn.data.sources import derm7pt, ham10000, isic
from jaxattn.data.sources.source_index import SourceIndex
from jaxattn.registry import Registry

#: Readers by the name of the data set: ``folder -> SourceIndex``. They open no image.
SOURCES: Registry[Callable[[Path], SourceIndex]] = Registry("--dataset")
SOURCES |= {
    "ham10000": ham10000.read,
    "isic2016": functools.partial(isic.read, year=2016),
    "isic2017": functools.partial(isic.read, year=2017),
    "derm7pt": derm7pt.read,
}
