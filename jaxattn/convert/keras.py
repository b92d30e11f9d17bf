"""Keras weights as our variables, and back, unchanged to the last bit.

Weights are matched by shape and by their order among the layers of their kind, which all of Keras'
formats keep (see `jaxattn.convert.keras_order`). The names that Keras makes up play no part: they
depend on what else was built in the session that wrote them.
"""

import contextlib
import difflib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from jaxattn.convert import keras_files, keras_networks
from jaxattn.convert.keras_files import Stored
from jaxattn.convert.keras_order import Layer, order
from jaxattn.errors import InputError, invalid, listed
from jaxattn.models import registry
from jaxattn.state import Variables

#: A layer's leaves in the order in which Keras lists its weights, and Keras' names of them.
_LEAVES = {
    ("params", "kernel"): "kernel",
    ("params", "scale"): "gamma",
    ("params", "bias"): "bias",
    ("params", "gamma"): "gamma",
    ("batch_stats", "mean"): "moving_mean",
    ("batch_stats", "var"): "moving_variance",
}
_Shapes = tuple[tuple[int, ...], ...]


class _Wanted(NamedTuple):
    """A layer with weights: where they lie in our variables, and their shapes."""

    layer: Layer
    leaves: list[tuple[str, ...]]
    shapes: _Shapes


def names() -> list[str]:
    """The models that weights can be converted for."""
    found = []
    for name in registry.names():
        with contextlib.suppress(InputError):
            keras_networks.output(registry.create(name, 1))
            found.append(name)
    return found


def load(path: Path, model: str, num_classes: int | None = None, **options: Any) -> Variables:
    """Reads a file of Keras weights.

    Args:
        path: A legacy ``.h5`` or ``.hdf5``, a ``.weights.h5`` or a ``.keras`` file.
        model: One of `registry.names()`.
        num_classes: Number of classes; by default, what the file's last dense layer has. A file
            without dense layers is of a network without its top, and gives variables without.
        **options: See `from_layers`.

    Returns:
        ``{'params': ..., 'batch_stats': ...}``, NumPy arrays, float32.

    Raises:
        InputError: The file is none of these, or damaged, or does not hold the weights of this
            model; then one sentence names the first
            differences of each kind.
    """
    layers = [(layer.name, layer.arrays) for layer in keras_files.read(path)]
    return from_layers(model, layers, num_classes, source=str(path), **options)


def from_layers(
    model: str,
    layers: Sequence[tuple[str, Sequence[np.ndarray]]],
    num_classes: int | None = None,
    *,
    image_size: int | None = None,
    source: str = "the layers",
    **options: Any,
) -> Variables:
    """Makes variables of the weights of Keras layers.

    Args:
        model: One of `registry.names()`.
        layers: Name (or class) and weights of every layer that has any, in the order of
            ``model.layers``, of which only the order among layers of one kind matters.
        num_classes: See `load`.
        image_size: Height and width of the images, on which the size of a dense layer may depend;
            by default, the size that the model was published with.
        source: What an error calls the layers.
        **options: Options of the model.

    Returns:
        ``{'params': ..., 'batch_stats': ...}``, NumPy arrays, float32.

    Raises:
        InputError: See `load`.
    """
    given = [Stored(name, [np.asarray(a) for a in arrays]) for name, arrays in layers if arrays]
    dense = [stored.arrays[0] for stored in given if len(stored.shapes[0]) == 2]
    if dense and num_classes is None:
        num_classes = dense[-1].shape[1]
    size = image_size or registry.find(model).image_size
    module = registry.create(model, num_classes or 1, **options)
    init = functools.partial(module.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    wanted = [layer for layer in _wanted(module, shapes) if dense or len(layer.shapes[0]) != 2]
    top = f"with {num_classes} classes" if dense else "without its top"
    pairs = _paired(wanted, given, str(source), f"the weights of {model!r} {top}")
    leaves = {
        leaf: array.astype(np.float32)
        for wanted, stored in pairs
        for leaf, array in zip(wanted.leaves, stored.arrays, strict=True)
    }
    return {"params": {}, "batch_stats": {}, **traverse_util.unflatten_dict(leaves)}


def to_layers(model: str, variables: Variables, **options: Any) -> list[Stored]:
    """The layers with weights that Keras has for a model, in the order of its ``model.layers``.

    Args:
        model: One of `registry.names()`.
        variables: Params and batch_stats of the model.
        **options: Options of the model.

    Returns:
        What `keras_files.write` takes.
    """
    leaves = traverse_util.flatten_dict(variables)
    logits = [leaf for path, leaf in leaves.items() if path[-2:] == ("logits", "kernel")]
    module = registry.create(model, logits[0].shape[1] if logits else 1, **options)
    layers = []
    for layer, own, _ in _wanted(module, variables):
        weights = [_LEAVES[leaf[0], leaf[-1]] for leaf in own]
        if layer.kind == "batch_normalization":
            weights = ["beta" if name == "bias" else name for name in weights]
        arrays = [np.asarray(leaves[leaf]) for leaf in own]
        layers.append(Stored(layer.name, arrays, layer.kind, tuple(weights)))
    return layers


def _wanted(module: nn.Module, variables: Variables) -> list[_Wanted]:
    """The layers with weights, in Keras' order."""
    leaves = traverse_util.flatten_dict(variables)
    wanted = []
    for layer in order(keras_networks.output(module)):
        path = tuple(layer.path.split("/"))
        own = [(kind, *path, leaf) for kind, leaf in _LEAVES if (kind, *path, leaf) in leaves]
        if own:
            wanted.append(_Wanted(layer, own, tuple(leaves[leaf].shape for leaf in own)))
    left = leaves.keys() - {leaf for layer in wanted for leaf in layer.leaves}
    if left:
        given = listed(["/".join(leaf) for leaf in sorted(left)])
        raise invalid(type(module).__name__, "layers that Keras has too", given)
    return wanted


def _paired(
    wanted: list[_Wanted], given: list[Stored], source: str, expected: str
) -> list[tuple[_Wanted, Stored]]:
    """Pairs layers of one kind in their order; what does not fit goes into one error."""
    pairs: list[tuple[_Wanted, Stored]] = []
    missing: list[str] = []
    left_over: list[str] = []
    other: list[str] = []
    kinds = {len(our.shapes[0]) for our in wanted} | {len(their.shapes[0]) for their in given}
    for kind in sorted(kinds):
        ours = [layer for layer in wanted if len(layer.shapes[0]) == kind]
        theirs = [layer for layer in given if len(layer.shapes[0]) == kind]
        matcher = difflib.SequenceMatcher(
            None, [layer.shapes for layer in ours], [layer.shapes for layer in theirs], False
        )
        for _, a0, a1, b0, b1 in matcher.get_opcodes():
            both = min(a1 - a0, b1 - b0)
            for our, their in zip(ours[a0 : a0 + both], theirs[b0 : b0 + both], strict=True):
                pairs.append((our, their))
                if our.shapes != their.shapes:
                    of, instead = _text(our.shapes), _text(their.shapes)
                    other.append(f"{our.layer.name} {of} ({their.name} {instead} given)")
            missing += [f"{our.layer.name} {_text(our.shapes)}" for our in ours[a0 + both : a1]]
            left_over += [f"{their.name} {_text(their.shapes)}" for their in theirs[b0 + both : b1]]
    other += _misplaced(pairs)
    differences = {"missing": missing, "left over": left_over, "expected instead": other}
    found = [f"{what}: {listed(which)}" for what, which in differences.items() if which]
    if found:
        raise invalid(source, expected, f"others; {'; '.join(found)}")
    return pairs


def _misplaced(pairs: list[tuple[_Wanted, Stored]]) -> list[str]:
    """Layers in whose place stands one that bears the explicit name of another layer."""
    explicit = {our.layer.name for our, _ in pairs if our.layer.named}
    return [
        f"{our.layer.name} ({their.name} given)"
        for our, their in pairs
        if their.name in explicit and their.name != our.layer.name
    ]


def _text(shapes: _Shapes) -> str:
    return " ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)
