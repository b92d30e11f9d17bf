"""Variables to start from: a folder that a conversion wrote, or a run's best checkpoint."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from jaxattn import run_dir
from jaxattn.checkpoints import Checkpoints
from jaxattn.errors import InputError
from jaxattn.state import TrainState, Variables

NOTES = "weights.json"
VARIABLES = "variables"


def save(folder: Path, variables: Variables, notes: dict[str, Any]) -> None:
    """Writes variables, an Orbax checkpoint, and notes on them.

    Args:
        folder: Made where it is not there.
        variables: Params and batch_stats.
        notes: JSON-able; ``model`` has the name of the model and its options, as a config.

    Raises:
        InputError: There is something in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already, a new folder wanted")
    folder.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / VARIABLES).absolute(), variables)
    run_dir.write_json(folder / NOTES, notes)


def load(folder: Path) -> tuple[Variables, dict[str, Any]]:
    """Reads what `save` wrote, or the best checkpoint of a run as it is evaluated.

    Returns:
        Params and batch_stats, NumPy arrays; and the notes, which for a run are the model and the
        step.

    Raises:
        InputError: The folder holds neither.
    """
    if (folder / NOTES).is_file():
        notes = json.loads((folder / NOTES).read_text())
        return _restore(folder / VARIABLES), notes
    if not (folder / run_dir.CONFIG).is_file():
        raise InputError(
            f"{folder}: neither {NOTES} nor {run_dir.CONFIG} there; a folder that a "
            "tools/convert_*.py wrote, or that of a run, wanted"
        )
    model = run_dir.read_config(folder).model.to_dict()
    with Checkpoints(folder / run_dir.CHECKPOINTS) as saved:
        step = saved.choose("best")
    state = _restore(folder / run_dir.CHECKPOINTS / str(step) / "state")
    variables = state.get("average") or {kind: state[kind] for kind in ("params", "batch_stats")}
    return variables, {"model": model, "step": step}


def _restore(path: Path) -> Any:
    """A checkpoint as NumPy arrays, whatever devices wrote it."""
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path.absolute()).item_metadata.tree
            args = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return checkpointer.restore(path.absolute(), restore_args=args)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path}: damaged ({reason}), an Orbax checkpoint wanted") from error


def start_from(
    state: TrainState, folder: Path, model: dict[str, Any]
) -> tuple[TrainState, dict[str, Any]]:
    """Puts the weights of a folder into a state before its first step.

    Weights of the same model are taken wholly, only the head (``logits``) stays new where the
    number of classes is another. Of another model with the same backbone, such as the network of
    keras.applications that it was trained as, the backbone is taken: all of it that this model has.

    Args:
        state: The state.
        folder: See `load`.
        model: Name and options of the state's model, as in its config.

    Returns:
        The state, and what was done: the notes of `load`, the number of arrays ``taken``, and the
        paths of those that stay ``new`` or of the folder's that are ``unused``.

    Raises:
        InputError: The folder holds no weights, or not those of this model; then one sentence
            names every difference.
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
        f"{path} {_shape(given, path)}, wanted {_shape(wanted, path)}"
        for path in [*new, *unused]
        if not may_differ(path, wanted, given)
    ]
    if differences:
        raise InputError(
            f"init_from: {folder} holds weights of {notes['model']['name']!r} that do not fit "
            f"{model['name']!r}: {'; '.join(differences)}"
        )
    taken = {
        path: jax.device_put(given[path], wanted[path].sharding, may_alias=False)
        if path in fits
        else leaf
        for path, leaf in wanted.items()
    }
    start = {"params": {}, "batch_stats": {}, **traverse_util.unflatten_dict(taken, sep="/")}
    state = state.replace(**start)
    if state.average is not None:
        state = state.replace(average=jax.tree.map(jnp.copy, start))
    return state, {**notes, "taken": len(fits), "new": new, "unused": unused}


def _shape(leaves: dict[str, Any], path: str) -> str:
    return "x".join(map(str, leaves[path].shape)) if path in leaves else "none"


def _of_head(path: str, wanted: dict[str, Any], given: dict[str, Any]) -> bool:
    """Whether a leaf is of the head, and the heads differ in their classes."""
    kernel = path.rpartition("/")[0] + "/kernel"
    if path.split("/")[-2] != "logits" or kernel not in wanted:
        return False
    return kernel not in given or wanted[kernel].shape[1] != given[kernel].shape[1]


def _beside_backbone(path: str, wanted: dict[str, Any], given: dict[str, Any]) -> bool:
    """Whether a leaf is of no layer of the backbone that the model has, the head left out."""
    del given
    _, module, *_ = parts = path.split("/")
    return path not in wanted or module != "backbone" or parts[-2] == "logits"
