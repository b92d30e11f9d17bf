"""HDF5 files from elsewhere: nothing outside the file is read, and nothing that is not in it.

HDF5 lets a data set lie in another file (external storage, virtual data sets, external links), be
declared without being stored, or unpack to any size. All of a file is checked before any of it is
read; only what the file itself holds passes.
"""

import contextlib
import io
import itertools
import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import h5py

from jaxattn.reading import unpacks_too_far

_MOST_OBJECTS = 100_000
_DEEPEST = 32
_MOST_TEXTS = 50_000
#: gzip, shuffle, Fletcher32 and LZF; others would be looked for among the system's plugins.
_FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, 32000)

#: The start of a global heap, which holds texts of any length: its signature and version.
_HEAP = b"GCOL\x01\x00\x00\x00"


@contextlib.contextmanager
def open_file(source: Path | bytes) -> Iterator[h5py.File]:
    """Opens a file, or its content, and checks it.

    Raises:
        ValueError: A part of it is a link, lies elsewhere, is not stored, would unpack to far more
            than the file holds, is reached twice, or lies too deep; or a heap is damaged.
        Exception: Whatever h5py raises for a damaged file.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if isinstance(source, bytes):
        _check_heaps(source)
    else:
        with source.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            _check_heaps(whole)
    with h5py.File(io.BytesIO(source) if isinstance(source, bytes) else source, "r") as file:
        _check(file, size)
        yield file


def _check_heaps(content: bytes | mmap.mmap) -> None:
    """Raises ValueError if libhdf5 would look for a text for ever.

    It goes from object to object of a heap by their lengths, which can be 0 in a damaged one.
    """
    start = content.find(_HEAP)
    while start >= 0:
        (length,) = struct.unpack_from("<Q", content, start + 8)
        place, end = start + 16, start + length
        while place + 16 <= min(end, len(content)):
            number, length = struct.unpack_from("<H6xQ", content, place)
            # Number 0 is what is free, its length that of its header too.
            step = 16 + -(-length // 8) * 8 if number else length
            if not 0 < step <= end - place:
                raise ValueError(f"the heap at byte {start:,} is damaged")
            place += step
        start = content.find(_HEAP, start + 1)


def _check(file: h5py.File, size: int) -> None:
    seen: set[int] = set()
    stored = packed = unpacked = 0
    waiting: list[tuple[h5py.Group, int]] = [(file, 0)]
    while waiting:
        group, depth = waiting.pop()
        _check_attributes(group, size)
        for name in group:
            place = f"{group.name}/{name}".lstrip("/")
            if type(group.get(name, getlink=True)) is not h5py.HardLink:
                raise ValueError(f"{place} is a link to somewhere else")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise ValueError(f"{place} is reached by two names")
            seen.add(address)
            if len(seen) > _MOST_OBJECTS or depth > _DEEPEST:
                raise ValueError(f"more than {_MOST_OBJECTS} objects, or {_DEEPEST} levels")
            if isinstance(item, h5py.Group):
                waiting.append((item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                _check_attributes(item, size)
                whole, here = _check_stored(item, place, size)
                stored += 0 if item.chunks else here
                packed += here if item.chunks else 0
                unpacked += whole if item.chunks else 0
    if stored + packed > size or unpacks_too_far(unpacked, packed):
        raise ValueError(f"it declares {stored + unpacked:,} bytes in {size:,}")


def _check_stored(dataset: h5py.Dataset, place: str, size: int) -> tuple[int, int]:
    """Checks that the file holds a data set; returns its bytes unpacked and stored."""
    made = dataset.id.get_create_plist()
    if made.get_external_count() or dataset.is_virtual:
        raise ValueError(f"{place} lies in another file")
    if dataset.dtype.kind not in "fiubcV":
        return 0, 0  # text, which nobody reads
    shape = dataset.shape or ()
    each = max(dataset.id.get_type().get_size(), dataset.dtype.itemsize)
    whole, here = math.prod(shape) * each, dataset.id.get_storage_size()
    if dataset.chunks is None:
        if dataset.id.get_type().get_size() * math.prod(shape) != here or here > size:
            raise ValueError(f"{place} is declared with {shape}, and {here:,} bytes are stored")
        return whole, here
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    if set(filters) - set(_FILTERS) or len(filters) > len(_FILTERS):
        raise ValueError(f"{place} is packed in a way that Keras never uses")
    chunks = [-(-all_ // one) for all_, one in zip(shape, dataset.chunks, strict=True)]
    if dataset.id.get_num_chunks() != math.prod(chunks):
        raise ValueError(f"{place} is declared with {shape}, and only a part is stored")
    return max(whole, math.prod(dataset.chunks) * each), here


def _check_attributes(item: h5py.Group | h5py.Dataset, size: int) -> None:
    for i in itertools.count():
        if i == h5py.h5a.get_num_attrs(item.id):
            return
        attribute = h5py.h5a.open(item.id, index=i)
        count = math.prod(attribute.shape or ())
        if count > _MOST_TEXTS or count * attribute.get_type().get_size() > size:
            raise ValueError(f"an attribute of {item.name} is declared with {attribute.shape}")
