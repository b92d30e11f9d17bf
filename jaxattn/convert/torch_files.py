"""Files that ``torch.save`` wrote, read without PyTorch and without running what they hold.

Both formats are read: the zip archive of PyTorch 1.6 and later, and the pickles before that. In
either, a pickle describes tensors as views into storages whose bytes follow. Only plain containers,
numbers, text and dense tensors are made of it; any other object becomes an `Opaque` stand-in.
"""

import collections
import io
import math
import mmap
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxattn.reading import open_zip, reading

#: First number in a file of the old format.
_MAGIC = 0x1950A86A20F9469CFC6C

_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}


class Opaque:
    """An object of a class that is not read: what it was made of is dropped."""

    def __init__(self, *arguments: Any, **options: Any):
        """Takes and drops whatever the object was made of."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    length: int
    start: int  # of a view into another storage, elements


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path) -> Any:
    """The object in a file, with NumPy arrays of the saved dtypes for its tensors.

    Args:
        path: A file of ``torch.save``: ``.pth``, ``.pt`` or ``.bin``.

    Raises:
        InputError: It is none, is damaged, or a tensor does not fit its storage.
    """
    with reading(path, "a file that torch.save wrote"):
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            return _read_pickles(mapped)


def _read_zip(path: Path) -> Any:
    with open_zip(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("no data.pkl in it")
        folder = names[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("big-endian numbers")
        found = _Unpickler(io.BytesIO(archive.read(names[0]))).load()
        return _resolved(found, lambda storage: archive.read(f"{folder}data/{storage.key}"))


def _read_pickles(file: mmap.mmap) -> Any:
    if _Unpickler(file).load() != _MAGIC:
        raise ValueError("another first number")
    _Unpickler(file).load()  # the version of the format
    if not _Unpickler(file).load().get("little_endian"):
        raise ValueError("big-endian numbers")
    unpickler = _Unpickler(file)
    found, storages = unpickler.load(), unpickler.storages
    contents = {}
    for key in _Unpickler(file).load():
        (count,) = np.frombuffer(file.read(8), np.int64)
        if count != storages[key].length:
            raise ValueError(f"storage {key} holds {count} elements")
        contents[key] = file.read(int(count) * storages[key].dtype.itemsize)
    return _resolved(found, lambda storage: contents[storage.key])


class _Unpickler(pickle.Unpickler):
    """Makes containers and descriptions of tensors, and calls nothing that a file names."""

    def __init__(self, file: Any):
        # Python allocates as many places as the largest one that an object is put in for later.
        start = file.tell()
        codes = pickletools.genops(file)
        puts = [int(place or 0) for code, place, _ in codes if code.name == "LONG_BINPUT"]
        if max(puts, default=0) > file.tell() - start:
            raise ValueError("more objects than bytes")
        file.seek(start)
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return np.dtype(_DTYPES[name])
        return known.get((module, name), Opaque)

    def persistent_load(self, saved: Any) -> _Storage:
        kind, dtype, key, _, count, *rest = saved
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise ValueError("a storage of a type that is not read")
        start = 0
        if rest and rest[0] is not None:  # (key, start, count) of a view into this storage
            start = int(rest[0][1])
        storage = _Storage(dtype, key, int(count), start)
        self.storages[key] = storage
        return storage


def _tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _Tensor:
    """What a tensor says of itself, if its elements lie in its storage, each once at most."""
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise ValueError("a tensor without a storage")
    offset += storage.start
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or math.prod(shape) > storage.length:
        raise ValueError(f"a tensor of shape {shape} in {storage.length} elements")
    if math.prod(shape) and last >= storage.length:
        raise ValueError(f"a tensor that ends at {last} of {storage.length} elements")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _resolved(value: Any, content: Callable[[_Storage], bytes]) -> Any:
    """The object with arrays for its tensors."""
    loaded: dict[str, np.ndarray] = {}

    def array(tensor: _Tensor) -> np.ndarray:
        storage = tensor.storage
        if storage.key not in loaded:
            loaded[storage.key] = np.frombuffer(content(storage), storage.dtype)
            if len(loaded[storage.key]) != storage.length:
                raise ValueError(f"storage {storage.key} does not hold {storage.length} elements")
        steps = [step * storage.dtype.itemsize for step in tensor.strides]
        elements = loaded[storage.key][tensor.offset :]
        return np.lib.stride_tricks.as_strided(elements, tensor.shape, steps).copy()

    def resolve(value: Any) -> Any:
        if isinstance(value, _Tensor):
            return array(value)
        if isinstance(value, Mapping):
            return {key: resolve(each) for key, each in value.items()}
        if type(value) in (list, tuple):
            return type(value)(resolve(each) for each in value)
        return value

    return resolve(value)
