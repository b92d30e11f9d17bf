import pytest

from jaxattn.models.attention.soft import SoftAttention
from jaxattn.models.backbones.inception_v3 import InceptionV3


def test_parameters_and_endpoints_are_those_of_keras(shapes, count):
    _, endpoints, variables = shapes(InceptionV3(1000), 299)
    assert count(variables["params"]) == 23_817_352
    assert count(variables) == 23_851_784
    # Table 1 of the paper, but for the convolution before mixed0, which has padding there.
    assert endpoints == {
        "conv_1a": (149, 149, 32),
        "conv_2a": (147, 147, 32),
        "conv_2b": (147, 147, 64),
        "pool_3a": (73, 73, 64),
        "conv_3b": (73, 73, 80),
        "conv_4a": (71, 71, 192),
        "pool_5a": (35, 35, 192),
        "mixed0": (35, 35, 256),
        "mixed1": (35, 35, 288),
        "mixed2": (35, 35, 288),
        **{f"mixed{i}": (17, 17, 768) for i in range(3, 8)},
        "mixed8": (8, 8, 1280),
        "mixed9": (8, 8, 2048),
        "mixed10": (8, 8, 2048),
        "global_pool": (2048,),
        "logits": (1000,),
    }


@pytest.mark.parametrize(
    ("place", "shape", "layers"),
    [
        ("mixed9/branch1/conv1", (384,), {"conv1"}),
        ("mixed9/branch1/split/branch1/conv1/bn", (384,), {"conv1", "split"}),
        ("mixed9/branch1/split", (768,), {"conv1", "split"}),
        ("mixed9/branch3/pool", (1280,), None),
    ],
)
def test_network_has_nothing_beside_or_after_where_it_stops(shapes, place, shape, layers):
    got, endpoints, variables = shapes(InceptionV3(10, final_endpoint=place), 139)
    assert got[1:] == endpoints[place] == (3, 3, *shape)
    assert not {"mixed10", "logits"} & set(variables["params"])
    if layers is None:
        assert "mixed9" not in variables["params"]
    else:
        ((_, branch),) = variables["params"]["mixed9"].items()
        assert set(branch) == layers


def test_half_of_a_split_is_a_stop(shapes):
    place = "mixed9/branch2/split/branch0/conv1"
    _, _, variables = shapes(InceptionV3(final_endpoint=place), 139)
    assert set(variables["params"]["mixed9"]["branch2"]["split"]) == {"branch0"}


def test_attention_plugs_in_after_a_block(shapes):
    _, endpoints, _ = shapes(InceptionV3(10, plugins={"mixed7": SoftAttention(heads=3)}), 139)
    assert endpoints["mixed7/maps"] == (3, 7, 7)
    assert endpoints["mixed7"] == (7, 7, 768)


def units():
    """Paths of the convolutions in the order in which Keras makes, and so numbers, them."""
    yield from ("conv_1a", "conv_2a", "conv_2b", "conv_3b", "conv_4a")
    branches = {
        **dict.fromkeys(("mixed0", "mixed1", "mixed2"), (1, 2, 3, 1)),
        "mixed3": (1, 3),
        **dict.fromkeys(("mixed4", "mixed5", "mixed6", "mixed7"), (1, 3, 5, 1)),
        "mixed8": (2, 4),
    }
    for name, counts in branches.items():
        for b, count in enumerate(counts):
            yield from (f"{name}/branch{b}/conv{i + 1}" for i in range(count))
    for name in ("mixed9", "mixed10"):
        yield f"{name}/branch0/conv1"
        yield f"{name}/branch1/conv1"
        yield from (f"{name}/branch1/split/branch{half}/conv1" for half in (0, 1))
        yield from (f"{name}/branch2/conv{i}" for i in (1, 2))
        yield from (f"{name}/branch2/split/branch{half}/conv1" for half in (0, 1))
        yield f"{name}/branch3/conv1"


def paths():
    """Where we have what Keras has in its layers, by their names in a fresh session."""
    found = {
        "max_pooling2d": "pool_3a",
        "max_pooling2d_1": "pool_5a",
        "mixed9_0": "mixed9/branch1/split",
        "concatenate": "mixed9/branch2/split",
        "avg_pool": "global_pool",
        "predictions": "logits",
    }
    for i, path in enumerate(units()):
        suffix = f"_{i}" if i else ""
        found |= {
            f"conv2d{suffix}": f"{path}/conv",
            f"batch_normalization{suffix}": f"{path}/bn",
            f"activation{suffix}": path,
        }
    return found


def test_activations_are_those_of_keras(keras, same_as_keras):
    model = keras.applications.InceptionV3(
        weights=None, classes=10, input_shape=(139, 139, 3), classifier_activation=None
    )
    stops = (
        *("mixed0/branch1/conv2/conv", "mixed0/branch1/conv2/bn", "mixed0/branch1/conv2"),
        *("mixed9/branch1/split", "mixed9/branch2/split/branch1/conv1"),
    )
    found = paths()
    same_as_keras(InceptionV3(10), model, lambda layer: found.get(layer, layer), stops)
