"""Compares backbones with the networks of keras.applications."""

import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxattn.models.backbones.base import Backbone

#: A Keras weight, and where ours is below its layer.
LEAVES = {
    "kernel": ("params", "kernel"),
    "bias": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}


@pytest.fixture
def keras():
    """Keras, if it runs on JAX; it numbers layers from 0 again."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip(f"Keras runs on {keras.backend.backend()}, not on JAX")
    keras.utils.clear_session()
    return keras


@pytest.fixture
def shapes():
    """Shapes of a backbone's final endpoint, endpoints and variables, without computing any."""

    def shapes(backbone: Backbone, size: int):
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        (final, endpoints), variables = jax.eval_shape(
            lambda images: backbone.init_with_output(jax.random.key(0), images, train=False),
            images,
        )
        return final.shape, {name: x.shape[1:] for name, x in endpoints.items()}, variables

    return shapes


@pytest.fixture
def count():
    """The number of parameters, batch statistics or both."""
    return lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))


def randomise(model) -> None:
    """He's kernels, and biases and statistics that keep activations of the order of one."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        weights = []
        for variable in layer.weights:
            if variable.name == "kernel":
                scale = np.sqrt(2 / np.prod(variable.shape[:-1]))
                weights.append(rng.normal(size=variable.shape, scale=scale))
            elif variable.name in ("moving_variance", "gamma"):
                weights.append(rng.uniform(0.5, 1.5, size=variable.shape))
            else:
                weights.append(rng.normal(size=variable.shape, scale=0.2))
        layer.set_weights(weights)


def transferred(model, path: Callable[[str], str]):
    """Our variables, from the Keras model's."""
    flat = {}
    for layer in model.layers:
        for variable in layer.weights:
            collection, leaf = LEAVES[variable.name]
            flat[collection, *path(layer.name).split("/"), leaf] = variable.value
    return traverse_util.unflatten_dict(flat)


@pytest.fixture
def same_as_keras():
    """Asserts that activations are those of a Keras model with random weights and statistics."""

    def check(backbone: Backbone, model, path: Callable[[str], str], stops: Sequence[str]) -> None:
        """Compares every endpoint, and the places at which the network can also stop.

        Args:
            backbone: Ours, with classes.
            model: The same in Keras.
            path: Where our variables, and our activations, are of a Keras layer's name.
            stops: Places inside endpoints.
        """
        randomise(model)
        variables = transferred(model, path)
        images = jax.random.normal(jax.random.key(1), (2, *model.input_shape[1:]))

        @jax.jit
        def ours(variables, images):
            _, endpoints = backbone.apply(variables, images, train=False)
            for place in stops:
                stopped = backbone.clone(final_endpoint=place)
                endpoints[place], _ = stopped.apply(variables, images, train=False)
            return endpoints

        got = ours(variables, images)
        outputs = {path(layer.name): layer.output for layer in model.layers}
        model = type(model)(model.input, {place: outputs[place] for place in got})
        wanted, _ = jax.jit(model.stateless_call)(
            [variable.value for variable in model.trainable_variables],
            [variable.value for variable in model.non_trainable_variables],
            images,
        )
        for place in got:
            largest = np.abs(wanted[place]).max()
            assert 0 < largest < np.inf
            np.testing.assert_allclose(
                got[place], wanted[place], rtol=0, atol=1e-4 * largest, err_msg=place
            )

    return check
