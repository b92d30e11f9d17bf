"""Checkpoints of earlier versions load: the variables of every model keep their names and shapes.

`parameter_trees.json` was written by version 0.1.0, before models were moved and split. It has, for
each model, the number of leaves, the number of parameters, and the SHA-256 of the sorted lines
``path shape dtype`` of all variables, joined by newlines, such as
``params/backbone/conv1/conv/kernel 7x7x3x64 float32`` (a scalar's shape is ``scalar``), when the
model is made with its published number of classes, for images of its published size.
"""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxattn.models import registry

pytestmark = pytest.mark.usefixtures("mixed_dtypes")

SNAPSHOT = json.loads(Path(__file__).with_name("parameter_trees.json").read_text())


@pytest.mark.parametrize("name", SNAPSHOT)
def test_variables_keep_their_names_and_shapes(name):
    entry = registry.find(name)
    model = registry.create(name, entry.num_classes)
    images = jax.ShapeDtypeStruct((1, entry.image_size, entry.image_size, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), images
    )
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    lines = sorted(
        f"{'/'.join(key.key for key in path)} "
        f"{'x'.join(map(str, leaf.shape)) or 'scalar'} {leaf.dtype}"
        for path, leaf in leaves
    )
    assert SNAPSHOT[name] == {
        "leaves": len(lines),
        "parameters": sum(leaf.size for path, leaf in leaves if path[0].key == "params"),
        "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }, "\n".join(lines)


def test_no_model_was_dropped():
    assert set(SNAPSHOT) <= set(registry.names())
