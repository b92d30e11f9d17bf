"""Keras' files of weights, read and written without Keras.

=====================  ==========================================================================
legacy HDF5            A group per layer, of the layer's name; attributes list the layers, and each
                       layer's weights, in order. In a whole model, below ``model_weights``. The
                       weights of a model inside the model lie in one group, the trainable before
                       the others.
``.weights.h5``        ``layers/CLASS_N/vars/0``, …: a layer by its class and its place among the
                       layers of that class; a model inside the model has ``layers`` of its own.
``.keras``             A zip of the latter (``model.weights.h5``) and of ``config.json``.
=====================  ==========================================================================

Optimizer states and random generators' are left out.
"""

import collections
import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from jaxattn.errors import InputError

_WANTED = "a Keras .h5, .weights.h5 or .keras file wanted"
#: Where Keras 3 and, before it, Keras 2.12 to 2.15 put a model's layers.
_LAYERS = ("layers", "_layer_checkpoint_dependencies")
#: What reading raises, besides what it should, where a group is an array or a zip has no end.
_BROKEN = (AttributeError, EOFError, zipfile.BadZipFile)


class Stored(NamedTuple):
    """A layer that has weights, as a file holds it.

    Attributes:
        name: Name of the layer, or its place where the file tells no names.
        arrays: Its weights.
        kind: Class of the layer in snake case; only `write` needs it.
        weight_names: Names of the weights; only `write` needs them.
    """

    name: str
    arrays: list[np.ndarray]
    kind: str = ""
    weight_names: tuple[str, ...] = ()

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the weights."""
        return tuple(array.shape for array in self.arrays)


def read(path: Path) -> list[Stored]:
    """Reads the layers with weights.

    Returns:
        Layers of one kind in the order of ``model.layers``; in legacy files, all layers are.

    Raises:
        InputError: The file is no Keras file, or is damaged.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, {_WANTED}")
    try:
        with path.open("rb") as start:
            if start.read(2) == b"PK":
                return _read_archive(path)
        if not h5py.is_hdf5(path):
            raise InputError(f"{path}: neither HDF5 nor a zip archive, {_WANTED}")
        with h5py.File(path) as file:
            return _read_hdf5(file, str(path))
    except InputError:
        raise
    except (OSError, LookupError, RuntimeError, TypeError, ValueError, *_BROKEN) as error:
        raise InputError(f"{path}: damaged ({error}), {_WANTED}") from error


def _read_archive(path: Path) -> list[Stored]:
    with zipfile.ZipFile(path) as archive:
        missing = {"config.json", "model.weights.h5"} - set(archive.namelist())
        if missing:
            raise InputError(f"{path}: a zip without {' and '.join(sorted(missing))}, {_WANTED}")
        json.loads(archive.read("config.json"))
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
            return _read_hdf5(file, str(path))


def _read_hdf5(file: h5py.File, source: str) -> list[Stored]:
    linked = file.visititems_links(lambda name, link: None if type(link) is h5py.HardLink else name)
    if linked:
        raise InputError(f"{source}: {linked} is a link to somewhere else, weights wanted")
    root = file.get("model_weights", file)
    if "layer_names" in root.attrs or "layer_names0" in root.attrs:
        layers = [stored for name in _texts(root, "layer_names") for stored in _legacy(root, name)]
    else:
        layers = list(_version_3(root))
    for stored in layers:
        for array in stored.arrays:
            if not np.issubdtype(array.dtype, np.floating):
                raise InputError(f"{source}: {stored.name} is of type {array.dtype}, floats wanted")
    if not layers:
        raise InputError(f"{source}: an HDF5 file without layers, {_WANTED}")
    return layers


def _texts(group: h5py.Group, name: str) -> list[str]:
    """A list of texts among the attributes, in one piece or cut into numbered ones."""
    pieces = (
        [name]
        if name in group.attrs
        else sorted(
            (key for key in group.attrs if re.fullmatch(rf"{name}\d+", key)),
            key=lambda key: int(key[len(name) :]),
        )
    )
    texts = [text for piece in pieces for text in group.attrs[piece]]
    return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]


def _legacy(root: h5py.Group, layer: str) -> list[Stored]:
    """A layer, or those of a model inside the model, whose weights' names begin with theirs."""
    group = root[layer]
    inner: dict[str, list[np.ndarray]] = {}
    for name in _texts(group, "weight_names"):
        inner.setdefault(name.rpartition("/")[0], []).append(np.asarray(group[name]))
    if len(inner) == 1:
        return [Stored(layer, arrays) for arrays in inner.values()]
    layers = [Stored(name.rpartition("/")[2], arrays) for name, arrays in inner.items()]
    # What is frozen comes last there, though it is the network's beginning: the convolution of
    # the three colours.
    first = [i for i, stored in enumerate(layers) if stored.arrays[0].shape[-2:-1] == (3,)]
    return layers[first[0] :] + layers[: first[0]] if first else layers


def _version_3(group: h5py.Group) -> Iterator[Stored]:
    """Layers of one class in their order; those of models inside the model come first."""
    below = [group[name] for name in _LAYERS if name in group]
    children = sorted(
        ((*_class_and_place(name), child) for layers in below for name, child in layers.items()),
        key=lambda child: child[:2],
    )
    for *_, child in children:
        yield from _version_3(child)
    for *_, child in children:
        weights = child.get("vars", {})
        if len(weights):
            arrays = [np.asarray(weights[key]) for key in sorted(weights, key=int)]
            yield Stored(str(weights.attrs.get("name", child.name.rpartition("/")[2])), arrays)


def _class_and_place(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.+?)(?:_(\d+))?", name)
    assert match
    return match[1], int(match[2] or 0)


def write(path: Path, layers: Sequence[Stored]) -> None:
    """Writes layers with weights, so that ``keras.Model.load_weights`` reads them.

    Args:
        path: ``.weights.h5`` for the format of Keras 3, another ``.h5`` or ``.hdf5`` for the
            legacy one.
        layers: In the order of ``model.layers``.

    Raises:
        InputError: The file is there, or its name ends otherwise.
    """
    if path.suffix not in (".h5", ".hdf5"):
        raise InputError(f"{path}: a file name ending in .weights.h5, .h5 or .hdf5 wanted")
    if path.exists():
        raise InputError(f"{path}: is there already, a new file wanted")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with h5py.File(part, "w") as file:
        (_write_version_3 if path.name.endswith(".weights.h5") else _write_legacy)(file, layers)
    part.replace(path)


def _write_version_3(file: h5py.File, layers: Sequence[Stored]) -> None:
    counts: collections.Counter[str] = collections.Counter()
    for layer in layers:
        place = f"_{counts[layer.kind]}" if counts[layer.kind] else ""
        counts[layer.kind] += 1
        group = file.create_group(f"layers/{layer.kind}{place}/vars")
        group.attrs["name"] = layer.name
        for i, array in enumerate(layer.arrays):
            group[str(i)] = array


def _write_legacy(file: h5py.File, layers: Sequence[Stored]) -> None:
    file.attrs["backend"] = "jax"
    file.attrs["keras_version"] = "3.0.0"  # else Keras 2 would look for layouts of Keras 1
    file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
    for layer in layers:
        group = file.create_group(layer.name)
        names = [f"{layer.name}/{name}" for name in layer.weight_names]
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name, array in zip(names, layer.arrays, strict=True):
            group[name] = array
