"""PyTorch's state dicts as our variables: torchvision's, timm's and pretrainedmodels' names.

A state dict says which array belongs where, so every one of ours is looked up by its name: layer by
layer under the names of its backbone's ``Entry.torch_names``. Only the axes of arrays change:
kernels of convolutions from OIHW to HWIO, of dense layers from (out, in) to (in, out).
"""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from jaxattn.convert import torch_files
from jaxattn.errors import InputError, invalid
from jaxattn.models import registry
from jaxattn.models.backbones import Backbone, Entry
from jaxattn.state import Variables

#: What a state dict may hold beside what we want: counters, and Inception-v3's second classifier,
#: which evaluation does not use.
_IGNORED = re.compile(r"num_batches_tracked$|^AuxLogits\.")

#: Other names of the same layers: those of torchvision's first DenseNet files, and of
#: pretrainedmodels and timm's "legacy" networks.
_OLD = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"^layer0\.(conv1|bn1)\."), r"\1."),
    (re.compile(r"\.se_module\."), ".se."),
    (re.compile(r"^last_linear\."), "fc."),
)
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def load(path: Path, model: str, num_classes: int | None = None) -> Variables:
    """Reads a file of PyTorch weights.

    Args:
        path: A ``.safetensors`` file, or one that ``torch.save`` wrote.
        model: One of `registry.names()` that has a backbone of PyTorch's: ``torch_densenet121``.
        num_classes: Number of classes; by default, what the file has. A file without classifier
            gives variables without.

    Returns:
        ``{'params': ..., 'batch_stats': ...}``, NumPy arrays, float32.

    Raises:
        InputError: The file is none of these, or does not hold the weights of this model; then one
            sentence names every array that is missing, left over or of another shape.
    """
    return from_state_dict(model, read(path), num_classes, source=str(path))


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by their names.

    Raises:
        InputError: It cannot be read, or holds no state dict.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, a .safetensors or .pth file wanted")
    if path.suffix == ".safetensors":
        try:
            return safetensors.numpy.load_file(path)
        except (safetensors.SafetensorError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}), a .safetensors file wanted"
            ) from error
    state: Any = torch_files.read(path)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]  # a training checkpoint
    if not isinstance(state, Mapping) or not all(
        isinstance(array, np.ndarray) for array in state.values()
    ):
        raise InputError(f"{path}: holds {type(state).__name__}, a state dict wanted")
    return {name: array.astype(np.float32) for name, array in state.items()}


def from_state_dict(
    model: str,
    state: Mapping[str, np.ndarray],
    num_classes: int | None = None,
    *,
    source: str = "the state dict",
) -> Variables:
    """Makes variables of a state dict.

    Args:
        model: See `load`.
        state: Arrays by name.
        num_classes: See `load`.
        source: What an error calls it.

    Returns:
        ``{'params': ..., 'batch_stats': ...}``, NumPy arrays, float32.

    Raises:
        InputError: See `load`.
    """
    given = _renamed(state)
    entry = _entry(model)
    backbone = entry.make()
    cadene = any(name.startswith("layer0.") for name in state)
    if cadene and not getattr(backbone, "ceil_pool", True):
        raise invalid(
            "--model",
            f"{model}_cadene for {source}, which has pretrainedmodels' names",
            f"{model}, whose first pool pads differently",
        )
    name_of = _naming(entry, backbone, given)
    head = given.get(f"{name_of('logits')}.weight")
    if num_classes is None and head is not None:
        num_classes = len(head)
    wanted = {
        leaf: shape
        for leaf, shape in _shapes(model, num_classes or 1).items()
        if num_classes is not None or not _of_head(leaf)
    }
    found: dict[str, np.ndarray] = {}
    missing, other = [], []
    for leaf, shape in wanted.items():
        *layer, last = leaf.split("/")[2:]
        name = f"{name_of('/'.join(layer))}.{_LEAVES[last]}"
        if name not in given:
            missing.append(f"{name} for {leaf}")
            continue
        array = _as_ours(given.pop(name), len(shape))
        if array.shape != shape:
            other.append(f"{name} {_text(array.shape)}, wanted {_text(shape)}")
        found[leaf] = array.astype(np.float32)
    differences = {"missing": missing, "left over": sorted(given), "of another shape": other}
    listed = [f"{what}: {', '.join(which)}" for what, which in differences.items() if which]
    if listed:
        raise InputError(f"{source} is no {model} of {num_classes} classes; {'; '.join(listed)}")
    return {"params": {}, "batch_stats": {}, **traverse_util.unflatten_dict(found, sep="/")}


def _entry(model: str) -> Entry:
    """The backbone of a model of PyTorch's."""
    entry = registry.find(model).fixed.get("backbone")
    if not isinstance(entry, Entry) or not entry.torch_names:
        raise invalid("--model", "a model of PyTorch's, torch_…", repr(model))
    return entry


def _naming(entry: Entry, backbone: Backbone, given: Mapping[str, Any]) -> Callable[[str], str]:
    """The names of our layers that fit a state dict best: PyTorch's, or another package's."""
    namings = [make(backbone) for make in (entry.torch_names, entry.torch_aliases) if make]
    return max(namings, key=lambda name_of: f"{name_of('logits')}.weight" in given)


def _shapes(model: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    module, size = registry.create(model, num_classes), registry.find(model).image_size
    init = functools.partial(module.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    leaves = traverse_util.flatten_dict(variables, sep="/")
    return {path: leaf.shape for path, leaf in leaves.items()}


def _of_head(leaf: str) -> bool:
    """Whether a leaf is of the layers that a backbone without classes has not."""
    return leaf.split("/")[2] in ("logits", "fc1", "fc2")


def _renamed(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without what is ignored, under today's names, without DataParallel's prefix."""
    wrapped = all(name.startswith("module.") for name in state)
    renamed = {}
    for name, array in state.items():
        name = name.removeprefix("module.") if wrapped else name
        if _IGNORED.search(name):
            continue
        for pattern, today in _OLD:
            name = pattern.sub(today, name)
        renamed[name] = array
    return renamed


def _as_ours(array: np.ndarray, rank: int) -> np.ndarray:
    if rank == 2:  # squeeze and excitation has 1×1 convolutions for dense layers
        return array.reshape(array.shape[:2]).T if array.size == np.prod(array.shape[:2]) else array
    return array.transpose(2, 3, 1, 0) if rank == array.ndim == 4 else array


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
