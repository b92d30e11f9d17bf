"""PyTorch's state dicts as our variables: torchvision's, timm's and pretrainedmodels' names.

A state dict says which array belongs where, so every one of ours is looked up by its name: layer by
layer under the names of `torch_names`. Arrays change their axes and nothing else: kernels of
convolutions from OIHW to HWIO, those of dense layers from (out, in) to (in, out).
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

from jaxattn.errors import InputError
from jaxattn.models import registry
from jaxattn.models.backbone import Backbone
from jaxattn.models.classifier import Classifier
from jaxattn.models.densenet import DenseNet
from jaxattn.models.inception_v3 import InceptionV3
from jaxattn.models.resnet_torch import TorchResNet
from jaxattn.models.vgg_bn import VGGBN
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
        path: A ``.safetensors`` file; or one that ``torch.save`` wrote, which needs PyTorch.
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
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: given without PyTorch installed, which alone reads it; PyTorch or a "
            ".safetensors file wanted"
        ) from error
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises whatever its unpickler does
        raise InputError(
            f"{path}: PyTorch cannot read it ({error}), a state dict wanted"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]  # a training checkpoint
    if not isinstance(state, Mapping) or not all(hasattr(v, "numpy") for v in state.values()):
        raise InputError(f"{path}: holds {type(state).__name__}, a state dict wanted")
    return {name: tensor.float().numpy() for name, tensor in state.items()}


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
    backbone = _backbone(model)
    cadene = any(name.startswith("layer0.") for name in state)
    if cadene and not getattr(backbone, "ceil_pool", True):
        raise InputError(
            f"{source} has pretrainedmodels' names, whose first pool pads otherwise; "
            f"{model}_cadene wanted instead of {model}"
        )
    name_of = torch_names(backbone)
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


def torch_names(backbone: Backbone) -> Callable[[str], str]:
    """What PyTorch calls a layer that a backbone of ours has under a path.

    Raises:
        InputError: There is no such network in PyTorch.
    """
    for kind, name_of in (
        (DenseNet, _densenet),
        (InceptionV3, _inception),
        (TorchResNet, _resnet),
        (VGGBN, functools.partial(_vgg, blocks=getattr(backbone, "blocks", ()))),
    ):
        if isinstance(backbone, kind) and getattr(backbone, "torch", True):
            return name_of
    raise InputError(
        f"a {type(backbone).__name__} is none of PyTorch's, one of the models torch_… wanted"
    )


def _backbone(model: str) -> Backbone:
    module = registry.create(model, 1)
    if not isinstance(module, Classifier):
        raise InputError(f"model: {model!r} given, one of the models torch_… wanted")
    return module.backbone()


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


def _densenet(path: str) -> str:
    stage, *inside = path.split("/")
    simple = {"bn": "features.norm5", "logits": "classifier"}
    if stage in simple:
        return simple[stage]
    last = "/".join(inside)
    if stage == "conv1":
        return {"conv": "features.conv0", "bn": "features.norm0"}[last]
    if block := re.fullmatch(r"conv(\d)_block(\d+)", stage):
        layer = {"bn": "norm1", "conv1/conv": "conv1", "conv1/bn": "norm2", "conv2": "conv2"}[last]
        return f"features.denseblock{int(block[1]) - 1}.denselayer{block[2]}.{layer}"
    layer = {"bn": "norm", "conv": "conv"}[last]
    return f"features.transition{int(stage.removeprefix('pool')) - 1}.{layer}"


def _resnet(path: str) -> str:
    if path == "logits":
        return "fc"
    stage, *inside = path.split("/")
    layer = {
        "conv": "conv1",
        "bn": "bn1",
        "shortcut/conv": "downsample.0",
        "shortcut/bn": "downsample.1",
    }.get("/".join(inside)) or ".".join(inside)
    if inner := re.fullmatch(r"conv(\d)/(conv|bn)", "/".join(inside)):
        layer = f"{inner[2]}{inner[1]}"
    if block := re.fullmatch(r"conv(\d)_block(\d+)", stage):
        return f"layer{int(block[1]) - 1}.{int(block[2]) - 1}.{layer}"
    return layer


def _vgg(path: str, blocks: tuple[int, ...]) -> str:
    dense = {"fc1": "classifier.0", "fc2": "classifier.3", "logits": "classifier.6"}
    if path in dense:
        return dense[path]
    stage, layer = path.split("/")
    block, place = map(int, stage.removeprefix("conv").split("_"))
    # Each convolution stands for three modules, each pool for one.
    index = 3 * (sum(blocks[: block - 1]) + place - 1) + block - 1
    return f"features.{index + (layer == 'bn')}"


_STEM = {
    "conv_1a": "Conv2d_1a_3x3",
    "conv_2a": "Conv2d_2a_3x3",
    "conv_2b": "Conv2d_2b_3x3",
    "conv_3b": "Conv2d_3b_1x1",
    "conv_4a": "Conv2d_4a_3x3",
}
_MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
#: Branches in the order of concatenation, by the mixed blocks that have them.
_BRANCHES = {
    (0, 1, 2): ("branch1x1", "branch5x5", "branch3x3dbl", "branch_pool"),
    (3,): ("branch3x3", "branch3x3dbl"),
    (4, 5, 6, 7): ("branch1x1", "branch7x7", "branch7x7dbl", "branch_pool"),
    (8,): ("branch3x3", "branch7x7x3"),
    (9, 10): ("branch1x1", "branch3x3", "branch3x3dbl", "branch_pool"),
}
_UNNUMBERED = ("branch1x1", "branch_pool")


def _inception(path: str) -> str:
    stage, *inside = path.split("/")
    if stage == "logits":
        return "fc"
    *places, layer = inside
    if stage in _STEM:
        return f"{_STEM[stage]}.{layer}"
    number = int(stage.removeprefix("mixed"))
    (names,) = (names for numbers, names in _BRANCHES.items() if number in numbers)
    branch = names[int(places[0].removeprefix("branch"))]
    if branch not in _UNNUMBERED and (number, branch) != (3, "branch3x3"):
        if places[1] == "split":  # the last of the branch, in two halves: 2a and 2b, or 3a and 3b
            branch += ("_2" if branch == "branch3x3" else "_3") + "ab"[int(places[2][-1])]
        else:
            branch += f"_{places[1].removeprefix('conv')}"
    return f"Mixed_{_MIXED[number]}.{branch}.{layer}"
