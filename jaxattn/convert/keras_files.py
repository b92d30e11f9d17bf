"""Keras' files of weights, read and written without Keras.

=====================  ==========================================================================
legacy HDF5            A group per layer, of the layer's name; attributes list the layers, and each
                       layer's weights, in order. In a whole model, below ``model_weights``. The
                       weights of a model inside the model lie in one group, the trainable before
                       the others.
``.weights.h5``        ``layers/CLASS_N/vars/0``, …: a layer by its class and its place among the
                       layers of that class; a model inside the model has ``layers`` of its own.
``.weights.json``      The latter in several files, and which layers lie in which.
``.keras``             A zip of ``model.weights.h5`` and of ``config.json``.
=====================  ==========================================================================

Optimizer states and random generators' are left out.
"""

import collections
import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import ml_dtypes
import numpy as np

from jaxattn.convert import hdf5
from jaxattn.errors import InputError, invalid
from jaxattn.reading import open_zip, read_json, reason

_EXPECTED = "a Keras .h5, .weights.h5 or .keras file"
#: Where Keras 3 and, before it, Keras 2.12 to 2.15 put a model's layers.
_LAYERS = ("layers", "_layer_checkpoint_dependencies")


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
        raise invalid(str(path), _EXPECTED, "no such file")
    try:
        with path.open("rb") as start:
            zipped = start.read(2) == b"PK"
        if zipped:
            layers = _read_archive(path)
        elif path.name.endswith(".weights.json"):
            layers = _read_shards(path)
        elif h5py.is_hdf5(path):
            with hdf5.open_file(path) as file:
                layers = _read_hdf5(file)
        else:
            raise invalid(str(path), _EXPECTED, "neither HDF5 nor a zip archive")
        _check_numbers(path, layers)
    except InputError:
        raise
    except Exception as error:  # h5py's are of a dozen classes, SystemError among them
        raise invalid(str(path), _EXPECTED, f"a damaged file ({reason(error)})") from error
    return layers


def _read_archive(path: Path) -> list[Stored]:
    with open_zip(path) as archive:
        missing = {"config.json", "model.weights.h5"} - set(archive.namelist())
        if missing:
            given = f"a zip without {' and '.join(sorted(missing))}"
            raise invalid(str(path), _EXPECTED, given)
        json.loads(archive.read("config.json"))
        content = archive.read("model.weights.h5")
    with hdf5.open_file(content) as file:
        return _read_hdf5(file)


def _read_shards(path: Path) -> list[Stored]:
    """The layers of several files; one layer lies in one of them, or its weights in several."""
    names: set[str] = set()
    for entry in read_json(path)["weight_map"].entries().values():
        listed = [entry] if isinstance(entry.value, str) else entry.items()
        names |= {name.text() for name in listed}
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*\.h5", name):
            raise invalid(f"{path}, weight_map", "names of files beside it", repr(name))
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(hdf5.open_file(path.with_name(n))) for n in sorted(names)]
        return list(_version_3(files))


def _read_hdf5(file: h5py.File) -> list[Stored]:
    root = file.get("model_weights", file)
    if "layer_names" in root.attrs or "layer_names0" in root.attrs:
        return [stored for name in _texts(root, "layer_names") for stored in _legacy(root, name)]
    return list(_version_3([root]))


def _check_numbers(path: Path, layers: list[Stored]) -> None:
    """Raises InputError unless all weights are finite floats."""
    if not layers:
        raise invalid(str(path), _EXPECTED, "an HDF5 file without layers")
    for stored in layers:
        for array in stored.arrays:
            if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
                raise invalid(f"{path}, {stored.name}", "floats", array.dtype)
            if not np.isfinite(array.astype(np.float64)).all():
                raise invalid(f"{path}, {stored.name}", "finite numbers", "NaN or infinity")


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
    texts = [text.decode() if isinstance(text, bytes) else str(text) for text in texts]
    if len(set(texts)) != len(texts):
        raise ValueError(f"{name} of {group.name} has a name twice")
    return texts


def _legacy(root: h5py.Group, layer: str) -> list[Stored]:
    """A layer, or those of a model inside the model, whose weights' names begin with theirs.

    Raises:
        InputError: Such a model has frozen layers behind trained ones.
    """
    group = root[layer]
    inner: dict[str, list[np.ndarray]] = {}
    last, again = "", False
    for name in _texts(group, "weight_names"):
        owner = name.rpartition("/")[0]
        # After the trained weights come the others, in the order of the layers: those of batch
        # norms, whose trained ones were there, and all of frozen layers.
        again |= owner in inner and owner != last
        if again and owner not in inner:
            raise invalid(
                root.file.filename,
                f"frozen layers at the beginning of {layer} alone",
                f"{owner} behind trained ones, and the file does not say where; unfreeze it, "
                "or save as .weights.h5 or .keras",
            )
        inner.setdefault(owner, []).append(_array(group[name]))
        last = owner
    if len(inner) == 1:
        return [Stored(layer, arrays) for arrays in inner.values()]
    layers = [Stored(name.rpartition("/")[2], arrays) for name, arrays in inner.items()]
    # What is frozen comes last there, though it is the network's beginning: the convolution of
    # the three colours.
    first = [i for i, stored in enumerate(layers) if stored.arrays[0].shape[-2:-1] == (3,)]
    return layers[first[0] :] + layers[: first[0]] if first else layers


def _array(dataset: h5py.Dataset) -> np.ndarray:
    if dataset.attrs.get("dtype") == "bfloat16":  # Keras stores the two bytes of each number
        return np.array(dataset, dtype=ml_dtypes.bfloat16)
    return np.asarray(dataset)


def _version_3(groups: Sequence[h5py.Group]) -> Iterator[Stored]:
    """Layers of one class in their order; those of models inside the model come first.

    Args:
        groups: One place in each of the files that a model is cut into.
    """
    children: dict[str, list[h5py.Group]] = {}
    for group in groups:
        for layers in (group[name] for name in _LAYERS if name in group):
            for name, child in layers.items():
                children.setdefault(name, []).append(child)
    ordered = sorted(children.items(), key=lambda child: _class_and_place(child[0]))
    for _, parts in ordered:
        yield from _version_3(parts)
    for _, parts in ordered:
        weights: dict[str, h5py.Dataset] = {}
        name = parts[0].name.rpartition("/")[2]
        for own in (part["vars"] for part in parts if "vars" in part):
            name = str(own.attrs.get("name", name))
            if weights.keys() & own.keys():
                raise ValueError(f"{own.name} lies in two files")
            weights |= own
        if weights:
            yield Stored(name, [_array(weights[key]) for key in sorted(weights, key=int)])


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
        raise invalid(str(path), "a name ending in .weights.h5, .h5 or .hdf5", path.name)
    if path.exists():
        raise invalid(str(path), "a new file", "one that is there already")
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
