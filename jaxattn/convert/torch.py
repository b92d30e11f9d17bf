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
import ml_dtypes
import numpy as np
import safetensors.numpy
from absl import logging
from flax import traverse_util

from jaxattn.convert import torch_files
from jaxattn.errors import invalid, listed
from jaxattn.models import registry
from jaxattn.models.backbones import Backbone, Entry
from jaxattn.reading import reason, shown
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
    # timm's VGG, whose first dense layers are convolutions of the whole image.
    (re.compile(r"^pre_logits\.fc1\."), "classifier.0."),
    (re.compile(r"^pre_logits\.fc2\."), "classifier.3."),
    (re.compile(r"^head\.fc\."), "classifier.6."),
)
_BF16 = np.dtype(ml_dtypes.bfloat16)
#: What training code puts around a state dict, and what wrappers put before every name in it.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
#: Names that only one kind of network has, to guess which one a file is of.
_MARKS = {
    "torch_se_resnext50_cadene": r"^layer0\.conv1\.|\.se_module\.",
    "torch_se_resnext50": r"^layer1\.0\.se\.",
    "torch_resnet50": r"^layer1\.0\.conv3\.",
    "torch_resnet34": r"^layer1\.0\.conv2\.",
    "torch_densenet121": r"^features\.denseblock1\.",
    "torch_inception_v3": r"^Mixed_5b\.",
    "torch_vgg16_bn": r"^features\.41\.running_mean",
}
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
            sentence names the model that it may be of, and the first arrays of each kind that are
            missing, left over or of another shape.
    """
    return from_state_dict(model, read(path), num_classes, source=str(path))


def names() -> list[str]:
    """The models that weights can be converted for."""
    found = {name: registry.find(name).fixed.get("backbone") for name in registry.names()}
    return [name for name, entry in found.items() if isinstance(entry, Entry) and entry.torch_names]


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by their names.

    Raises:
        InputError: It cannot be read, or holds no state dict.
    """
    if not path.is_file():
        raise invalid(str(path), "a .safetensors or .pth file", "no such file")
    if path.suffix == ".safetensors":
        try:
            return safetensors.numpy.load_file(path)
        except Exception as error:
            given = f"one that cannot be read ({reason(error)})"
            raise invalid(str(path), "a .safetensors file", given) from error
    state = _unwrapped(path, torch_files.read(path))
    for name, array in state.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            given = f"{type(array).__name__} for {shown(name)}"
            raise invalid(str(path), "a state dict", given)
    # NumPy itself knows no bfloat16; float32 holds all of its numbers.
    return {name: a.astype(np.float32) if a.dtype == _BF16 else a for name, a in state.items()}


def _unwrapped(path: Path, state: Any) -> Mapping[str, Any]:
    """The state dict in what training code saved."""
    while isinstance(state, Mapping):
        inner = [key for key in _WRAPPERS if isinstance(state.get(key), Mapping)]
        if not inner:
            break
        if len(inner) > 1:
            raise invalid(str(path), "one state dict", " and ".join(inner))
        state = state[inner[0]]
    if not isinstance(state, Mapping) or not state:
        raise invalid(str(path), "a state dict", type(state).__name__)
    return state


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
    state = _stripped(state)
    given = _renamed(state)
    entry = _entry(model)
    backbone = entry.make()
    likely = _likely(state)
    if likely != model and {likely, model} == {"torch_se_resnext50", "torch_se_resnext50_cadene"}:
        raise invalid(
            "--model",
            f"{likely} for {source}, as the names in it say",
            f"{model}, whose first pool pads differently",
        )
    _check_numbers(source, given)
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
            other.append(f"{name} {_text(array.shape)}, expected {_text(shape)}")
        found[leaf] = array.astype(np.float32)
    differences = {"missing": missing, "left over": sorted(given), "of another shape": other}
    listing = [f"{what}: {listed(which)}" for what, which in differences.items() if which]
    if listing:
        those = f"the names of {likely}" if likely not in ("", model) else "others"
        expected = f"the weights of {model} with {num_classes} classes"
        raise invalid(source, expected, f"{those}; {'; '.join(listing)}")
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


def _stripped(state: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Without what DataParallel, torch.compile and modules around the network put before names."""
    while state:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), "")
        if not prefix:
            break
        state = {name.removeprefix(prefix): array for name, array in state.items()}
    return state


def _likely(state: Mapping[str, np.ndarray]) -> str:
    """The model whose names a state dict has, '' if it is none of ours."""
    found = (model for model, mark in _MARKS.items() if any(re.search(mark, n) for n in state))
    return next(found, "")


def _renamed(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without what is ignored, under today's names."""
    renamed = {}
    for name, array in state.items():
        if _IGNORED.search(name):
            continue
        for pattern, today in _OLD:
            name = pattern.sub(today, name)
        renamed[name] = array
    return renamed


def _check_numbers(source: str, state: Mapping[str, np.ndarray]) -> None:
    """Raises InputError unless all arrays are finite floats; says what float32 rounds."""
    kinds = [f"{name} {array.dtype}" for name, array in state.items() if array.dtype.kind != "f"]
    if kinds:
        raise invalid(source, "floats", listed(kinds))
    broken = [name for name, array in state.items() if not np.isfinite(array).all()]
    if broken:
        raise invalid(source, "finite numbers", f"NaN or infinity in {listed(broken)}")
    wide = [name for name, a in state.items() if a.dtype == np.float64 and _rounds(a)]
    if wide:
        logging.warning("%s: rounded to float32: %s", source, listed(wide))


def _rounds(array: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return not np.array_equal(array.astype(np.float32), array)


def _as_ours(array: np.ndarray, rank: int) -> np.ndarray:
    if rank == 2:  # squeeze and excitation, and timm's VGG, have convolutions for dense layers
        return array.reshape(len(array), -1).T if array.ndim in (2, 4) else array
    return array.transpose(2, 3, 1, 0) if rank == array.ndim == 4 else array


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
