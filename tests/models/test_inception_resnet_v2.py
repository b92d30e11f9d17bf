import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.errors import InputError
from jaxattn.models import registry
from jaxattn.models.inception_resnet_v2 import InceptionResNetV2
from jaxattn.models.soft_attention import SoftAttention, SoftAttentionBlock

SMALL = {"repeats": (1, 1, 2)}


def shapes(module, size, batch=1):
    """Variables, outputs and everything else only as shapes."""
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    return jax.eval_shape(
        lambda images: module.init_with_output(jax.random.key(0), images, train=False), images
    )


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_network_is_the_one_of_keras_applications():
    (_, endpoints), variables = shapes(InceptionResNetV2(num_classes=1000), 299)
    # The counts that keras.applications prints for it.
    assert count(variables["params"]) == 55_813_192
    assert count(variables["batch_stats"]) == 60_544
    assert set(endpoints) == {
        *("conv_1a", "conv_2a", "conv_2b", "pool_3a", "conv_3b", "conv_4a", "pool_5a", "mixed_5b"),
        *(f"block35_{i}" for i in range(1, 11)),
        "mixed_6a",
        *(f"block17_{i}" for i in range(1, 21)),
        "mixed_7a",
        *(f"block8_{i}" for i in range(1, 11)),
        *("conv_7b", "global_pool", "logits"),
    }
    # Figures 3 to 9 of the paper (and of Keras, which has 35, 17 and 8).
    assert endpoints["conv_4a"].shape == (1, 71, 71, 192)
    assert endpoints["block35_10"].shape == (1, 35, 35, 320)
    assert endpoints["block17_20"].shape == (1, 17, 17, 1088)
    assert endpoints["block8_10"].shape == (1, 8, 8, 2080)
    assert endpoints["conv_7b"].shape == (1, 8, 8, 1536)


@pytest.mark.parametrize(
    ("endpoint", "shape", "branches"),
    [
        ("block8_1/branch0/conv1/bn", (3, 3, 192), {"branch0": {"conv1"}}),
        ("block8_1/branch1/conv2", (3, 3, 224), {"branch1": {"conv1", "conv2"}}),
        ("mixed_6a/branch2/pool", (7, 7, 320), {}),
    ],
)
def test_network_stops_inside_a_block_without_what_lies_beside(endpoint, shape, branches):
    (x, endpoints), variables = shapes(InceptionResNetV2(final_endpoint=endpoint, **SMALL), 139)
    assert x.shape == endpoints[endpoint].shape == (1, *shape)
    name = endpoint.split("/")[0]
    block = variables["params"].get(name, {})
    assert {branch: set(convs) for branch, convs in block.items()} == branches
    assert "conv_7b" not in variables["params"]


def test_the_three_stops_of_a_convolution():
    images = jax.random.normal(jax.random.key(1), (2, 9, 9, 3))
    conv, bn, relu = (
        InceptionResNetV2(final_endpoint=f"conv_1a{part}") for part in ("/conv", "/bn", "")
    )
    variables = relu.init(jax.random.key(0), images, train=False)
    raw, _ = conv.apply({"params": variables["params"]}, images, train=False)
    normalised, _ = bn.apply(variables, images, train=False)
    # Fresh statistics are mean 0 and variance 1.
    np.testing.assert_allclose(normalised, raw / np.sqrt(1 + 1e-3), rtol=1e-5, atol=1e-6)
    active, _ = relu.apply(variables, images, train=False)
    np.testing.assert_array_equal(active, np.maximum(normalised, 0))


@pytest.mark.parametrize("endpoint", ["conv_2a", "block17_1", "conv_7b"])
def test_attention_plugs_in_at_any_endpoint(endpoint):
    plain = InceptionResNetV2(**SMALL)
    attended = InceptionResNetV2(plugins={endpoint: SoftAttention(heads=4)}, **SMALL)
    (_, before), _ = shapes(plain, 139)
    (_, after), variables = shapes(attended, 139)
    batch, height, width, channels = before[endpoint].shape
    assert after[endpoint].shape == before[endpoint].shape
    assert after[f"{endpoint}/maps"].shape == (batch, 4, height, width)
    kernel = variables["params"][f"plugins_{endpoint}"]["kernel"]
    assert kernel.shape == (channels, 3, 3, 1, 4)


def test_what_a_plugin_returns_flows_on():
    plugins = {"mixed_6a": SoftAttentionBlock(heads=2)}
    (_, endpoints), _ = shapes(InceptionResNetV2(plugins=plugins, **SMALL), 139)
    assert endpoints["mixed_6a"].shape == (1, 4, 4, 2 * 1088)
    assert endpoints["block17_1"].shape == (1, 4, 4, 2 * 1088)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final_endpoint": "block8_11"}, "final_endpoint 'block8_11'.*did you mean 'block8_1"),
        ({"final_endpoint": "block8_9/branch0/conv2"}, "did you mean 'block8_9/branch"),
        ({"final_endpoint": "logits"}, "final_endpoint 'logits'"),
        ({"plugins": {"mixed_6c": SoftAttention()}}, "plugin 'mixed_6c'.*mean 'mixed_6a'"),
    ],
)
def test_unknown_endpoints_are_named(options, message):
    with pytest.raises(InputError, match=message):
        shapes(InceptionResNetV2(**options), 139)


def conv_paths(repeats=(10, 20, 10)):
    """Paths of the convolutions with batch norm, in the order in which Keras makes them."""
    branches = {
        **{name: None for name in ("conv_1a", "conv_2a", "conv_2b", "conv_3b", "conv_4a")},
        "mixed_5b": (1, 2, 3, 1),
        **{f"block35_{i + 1}": (1, 2, 3) for i in range(repeats[0])},
        "mixed_6a": (1, 3),
        **{f"block17_{i + 1}": (1, 3) for i in range(repeats[1])},
        "mixed_7a": (2, 2, 3),
        **{f"block8_{i + 1}": (1, 3) for i in range(repeats[2])},
    }
    for name, counts in branches.items():
        if counts is None:
            yield (name,)
        for b, convs in enumerate(counts or ()):
            yield from ((name, f"branch{b}", f"conv{i + 1}") for i in range(convs))


def put(tree, path, value):
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def values(layer):
    return [variable.value for variable in layer.weights]


def linen_variables(keras_model):
    """The Linen variables of ``InceptionResNetV2`` with classes, from the Keras model's layers."""
    weights = {layer.name: values(layer) for layer in keras_model.layers}
    names = [("conv_7b", "conv_7b_bn", ("conv_7b",))]
    for i, path in enumerate(conv_paths()):
        suffix = f"_{i}" if i else ""
        names.append((f"conv2d{suffix}", f"batch_normalization{suffix}", path))
    params, stats = {}, {}
    for conv, bn, path in names:
        (kernel,), (beta, mean, variance) = weights[conv], weights[bn]
        put(params, (*path, "conv", "kernel"), kernel)
        put(params, (*path, "bn", "bias"), beta)
        put(stats, (*path, "bn", "mean"), mean)
        put(stats, (*path, "bn", "var"), variance)
    for kind, repeats in (("block35", 10), ("block17", 20), ("block8", 10)):
        for i in range(1, repeats + 1):
            kernel, bias = weights[f"{kind}_{i}_conv"]
            put(params, (f"{kind}_{i}", "conv", "kernel"), kernel)
            put(params, (f"{kind}_{i}", "conv", "bias"), bias)
    put(params, ("logits", "kernel"), weights["predictions"][0])
    put(params, ("logits", "bias"), weights["predictions"][1])
    return {"params": params, "batch_stats": stats}


def randomise(keras_model):
    """He's kernels, and biases and statistics that keep activations of the order of one."""
    rng = np.random.default_rng(0)
    for layer in keras_model.layers:
        weights = []
        for variable in layer.weights:
            if variable.name == "kernel":
                scale = np.sqrt(2 / np.prod(variable.shape[:-1]))
                weights.append(rng.normal(size=variable.shape, scale=scale))
            elif variable.name == "moving_variance":
                weights.append(rng.uniform(0.5, 1.5, size=variable.shape))
            else:
                weights.append(rng.normal(size=variable.shape, scale=0.2))
        layer.set_weights(weights)


def keras_soft_attention(keras, x, heads=16):
    """The released layer, as it was written."""

    class Layer(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 3, 3, 1, heads), name="kernel")
            self.bias = self.add_weight(shape=(heads,), name="bias")

        def call(self, x):
            logits = keras.ops.conv(
                x[..., None], self.kernel, (1, 1, x.shape[-1]), "same", "channels_last"
            )
            logits = keras.ops.relu(logits[:, :, :, 0] + self.bias)
            flat = keras.ops.reshape(logits, (-1, x.shape[1] * x.shape[2], heads))
            maps = keras.ops.softmax(flat, axis=1)
            total = keras.ops.reshape(maps.sum(-1), (-1, *x.shape[1:3], 1))
            return x * total

    layer = Layer()
    return layer, layer(x)


ENDPOINTS = {
    "mixed_5b": "mixed_5b",
    "block35_10": "block35_10_ac",
    "mixed_6a": "mixed_6a",
    "block17_20": "block17_20_ac",
    "mixed_7a": "mixed_7a",
    "block8_9": "block8_9_ac",
    "conv_7b": "conv_7b_ac",
    "logits": "predictions",
}


def keras_models():
    """Keras' network with our writing of the released model on it, and what is needed of them."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip(f"Keras runs on {keras.backend.backend()}, not on JAX")
    keras.utils.clear_session()
    network = keras.applications.InceptionResNetV2(weights=None, classifier_activation=None)
    tap = network.get_layer("batch_normalization_195").output
    attention, attended = keras_soft_attention(keras, tap)
    pooled = [keras.layers.MaxPooling2D(padding="same")(each) for each in (tap, attended)]
    x = keras.layers.ReLU()(keras.layers.Concatenate()(pooled))
    dense = keras.layers.Dense(7)
    outputs = [network.get_layer(name).output for name in ENDPOINTS.values()]
    sa_logits = dense(keras.layers.Flatten()(keras.layers.Dropout(0.5)(x)))
    model = keras.Model(network.input, [*outputs, sa_logits])
    assert keras.Model(network.input, sa_logits).count_params() == 47_535_287
    randomise(model)
    return model, values(attention), values(dense)


def close(got, wanted, tolerance):
    assert np.all(np.isfinite(wanted))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.slow
def test_activations_logits_and_input_gradient_are_those_of_keras():
    model, attention, dense = keras_models()
    network = linen_variables(model)
    released = jax.eval_shape(
        lambda: registry.build("irv2_sa", 7).init(
            jax.random.key(0), jnp.zeros((1, 299, 299, 3)), train=False
        )
    )
    backbone = {
        part: jax.tree_util.tree_map_with_path(
            lambda path, _, part=part: _at(network[part], path), released[part]["backbone"]
        )
        for part in network
    }
    released = {
        "params": {
            "backbone": backbone["params"],
            "attention": {"soft_attention": dict(zip(("kernel", "bias"), attention, strict=True))},
            "logits": dict(zip(("kernel", "bias"), dense, strict=True)),
        },
        "batch_stats": {"backbone": backbone["batch_stats"]},
    }
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, size=(1, 299, 299, 3)).astype(np.float32)
    weights = rng.normal(size=7).astype(np.float32)

    def ours(images):
        _, endpoints = InceptionResNetV2(1000).apply(network, images, train=False)
        logits, _ = registry.build("irv2_sa", 7).apply(released, images, train=False)
        outputs = [endpoints[name] for name in ENDPOINTS]
        return logits[0] @ weights + outputs[-1][0, :7] @ weights, [*outputs, logits]

    def keras(images):
        state = [v.value for v in model.trainable_variables]
        stats = [v.value for v in model.non_trainable_variables]
        outputs, _ = model.stateless_call(state, stats, images, training=False)
        return outputs[-1][0] @ weights + outputs[-2][0, :7] @ weights, outputs

    (_, got), got_gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(images)
    (_, wanted), gradient = jax.jit(jax.value_and_grad(keras, has_aux=True))(images)
    for g, w in zip(got, wanted, strict=True):
        close(g, w, 1e-4)
    # Where two values tie in a max pool, or one is about 0 in a ReLU, rounding decides which way
    # the gradient goes; single pixels then differ by more, and the norm with them.
    error = np.abs(got_gradient - gradient)
    assert np.median(error) <= 1e-3 * np.median(np.abs(gradient))
    assert np.linalg.norm(error) <= 0.02 * np.linalg.norm(gradient)


def _at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree
