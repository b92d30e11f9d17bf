import jax
import numpy as np
import pytest

from jaxattn.errors import InputError
from jaxattn.models.attention.soft import SoftAttention, SoftAttentionBlock
from jaxattn.models.backbones.inception_resnet_v2 import InceptionResNetV2

SMALL = {"repeats": (1, 1, 2)}


def test_network_is_the_one_of_keras_applications(shapes, count):
    _, endpoints, variables = shapes(InceptionResNetV2(num_classes=1000), 299)
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
    assert endpoints["conv_4a"] == (71, 71, 192)
    assert endpoints["block35_10"] == (35, 35, 320)
    assert endpoints["block17_20"] == (17, 17, 1088)
    assert endpoints["block8_10"] == (8, 8, 2080)
    assert endpoints["conv_7b"] == (8, 8, 1536)


@pytest.mark.parametrize(
    ("endpoint", "shape", "branches"),
    [
        ("block8_1/branch0/conv1/bn", (3, 3, 192), {"branch0": {"conv1"}}),
        ("block8_1/branch1/conv2", (3, 3, 224), {"branch1": {"conv1", "conv2"}}),
        ("mixed_6a/branch2/pool", (7, 7, 320), {}),
    ],
)
def test_network_stops_inside_a_block_without_what_lies_beside(shapes, endpoint, shape, branches):
    got, endpoints, variables = shapes(InceptionResNetV2(final_endpoint=endpoint, **SMALL), 139)
    assert got[1:] == endpoints[endpoint] == shape
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
def test_attention_plugs_in_at_any_endpoint(shapes, endpoint):
    plain = InceptionResNetV2(**SMALL)
    attended = InceptionResNetV2(plugins={endpoint: SoftAttention(heads=4)}, **SMALL)
    _, before, _ = shapes(plain, 139)
    _, after, variables = shapes(attended, 139)
    height, width, channels = before[endpoint]
    assert after[endpoint] == before[endpoint]
    assert after[f"{endpoint}/maps"] == (4, height, width)
    kernel = variables["params"][f"plugins_{endpoint}"]["kernel"]
    assert kernel.shape == (channels, 3, 3, 1, 4)


def test_what_a_plugin_returns_flows_on(shapes):
    plugins = {"mixed_6a": SoftAttentionBlock(heads=2)}
    _, endpoints, _ = shapes(InceptionResNetV2(plugins=plugins, **SMALL), 139)
    assert endpoints["mixed_6a"] == (4, 4, 2 * 1088)
    assert endpoints["block17_1"] == (4, 4, 2 * 1088)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"final_endpoint": "block8_11"},
            "final_endpoint: .*did you mean 'block8_1.*got 'block8_11'",
        ),
        ({"final_endpoint": "block8_9/branch0/conv2"}, "did you mean 'block8_9/branch"),
        ({"final_endpoint": "logits"}, "final_endpoint: .*got 'logits'"),
        (
            {"plugins": {"mixed_6c": SoftAttention()}},
            "attention_at: .*mean 'mixed_6a'.*got 'mixed_6c'",
        ),
    ],
)
def test_unknown_endpoints_are_named(shapes, options, message):
    with pytest.raises(InputError, match=message):
        shapes(InceptionResNetV2(**options), 139)


def units():
    """Paths of the convolutions with batch norm, in the order in which Keras numbers them."""
    yield from ("conv_1a", "conv_2a", "conv_2b", "conv_3b", "conv_4a")
    branches = {
        "mixed_5b": (1, 2, 3, 1),
        **{f"block35_{i}": (1, 2, 3) for i in range(1, 11)},
        "mixed_6a": (1, 3),
        **{f"block17_{i}": (1, 3) for i in range(1, 21)},
        "mixed_7a": (2, 2, 3),
        **{f"block8_{i}": (1, 3) for i in range(1, 11)},
    }
    for name, counts in branches.items():
        for b, count in enumerate(counts):
            yield from (f"{name}/branch{b}/conv{i + 1}" for i in range(count))


def paths():
    """Where we have what Keras has in its layers, by their names in a fresh session."""
    found = {
        "max_pooling2d": "pool_3a",
        "max_pooling2d_1": "pool_5a",
        "custom_scale_layer_39": "block8_10",  # The one block without a ReLU.
        "conv_7b": "conv_7b/conv",
        "conv_7b_bn": "conv_7b/bn",
        "conv_7b_ac": "conv_7b",
        "avg_pool": "global_pool",
        "predictions": "logits",
    }
    for kind, repeats in (("block35", 10), ("block17", 20), ("block8", 10)):
        for i in range(1, repeats + 1):
            found |= {f"{kind}_{i}_conv": f"{kind}_{i}/conv", f"{kind}_{i}_ac": f"{kind}_{i}"}
    for i, path in enumerate(units()):
        suffix = f"_{i}" if i else ""
        found |= {
            f"conv2d{suffix}": f"{path}/conv",
            f"batch_normalization{suffix}": f"{path}/bn",
            f"activation{suffix}": path,
        }
    return found


def test_activations_are_those_of_keras(keras, same_as_keras):
    model = keras.applications.InceptionResNetV2(
        weights=None, classes=10, input_shape=(139, 139, 3), classifier_activation=None
    )
    # Where the released model is cut, and one place inside a block of each other kind.
    stops = ("block8_9/branch0/conv1/bn", "block35_1/branch1/conv2/bn", "block17_1/branch1/conv3")
    found = paths()
    same_as_keras(InceptionResNetV2(10), model, lambda layer: found.get(layer, layer), stops)
