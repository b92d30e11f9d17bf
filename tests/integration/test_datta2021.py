"""What the released notebooks' layer lists say beyond the counts, which test_all_models has."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.models import registry
from jaxattn.models.attention.soft import SoftAttentionBlock
from jaxattn.models.backbones.datta_resnet34 import DattaResNet34
from jaxattn.models.backbones.datta_vgg16 import DattaVGG16
from jaxattn.models.datta2021 import Unit


def shapes(module, size, **rngs):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(
        lambda images: module.init_with_output(
            {"params": jax.random.key(0), **rngs}, images, train=bool(rngs)
        ),
        images,
    )


def drops(name):
    """Whether training needs random numbers, which is where there is dropout."""
    entry = registry.find(name)
    model = registry.create(name, 7)
    images = jax.ShapeDtypeStruct((1, entry.image_size, entry.image_size, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), images
    )
    try:
        jax.eval_shape(
            lambda v, images: model.apply(v, images, train=True, mutable=["batch_stats"]),
            variables, images,
        )  # fmt: skip
    except flax.errors.InvalidRngError:
        return True
    return False


def test_which_models_drop_activations():
    """With attention all do; without it, only Inception-ResNet-v2."""
    assert drops("irv2")
    for name in ("densenet201", "resnet50", "resnet34", "vgg16"):
        assert not drops(name), name
    for name in ("resnet34_sa", "vgg16_sa"):
        assert drops(name), name


def test_resnet34_halves_its_resolution_only_with_attention():
    (_, plain), _ = shapes(DattaResNet34(7), 224)
    plugins = {"conv3_block4": SoftAttentionBlock()}
    (_, attended), _ = shapes(DattaResNet34(7, plugins=plugins), 224)
    assert plain["conv1"].shape == (1, 112, 112, 64)
    assert plain["conv2_block3"].shape == (1, 56, 56, 64)
    assert plain["conv4_block6"].shape == (1, 28, 28, 256)
    assert plain["conv5_block3"].shape == (1, 14, 14, 512)
    assert attended["conv3_block4"].shape == (1, 14, 14, 256)
    assert attended["conv4_block6"].shape == (1, 14, 14, 256)
    assert attended["conv5_block3"].shape == (1, 7, 7, 512)


def test_vgg16_ends_its_blocks_with_1x1_convolutions():
    (_, endpoints), variables = shapes(DattaVGG16(7), 224)
    kernels = {
        name: layer["conv"]["kernel"].shape[:2]
        for name, layer in variables["params"].items()
        if "conv" in name
    }
    pointwise = {name for name, size in kernels.items() if size == (1, 1)}
    assert pointwise == {f"block{i}_conv{n}" for i, n in enumerate((2, 2, 3, 3, 3), 1)}
    assert len(kernels) == 13
    assert endpoints["block4_pool"].shape == (1, 14, 14, 512)
    assert endpoints["block5_pool"].shape == (1, 4, 4, 512)


def test_paper_models_attend_to_what_the_block_gives():
    for name, channels, side in (
        ("irv2_sa_paper", 2080, 8),
        ("densenet201_sa_paper", 1920, 7),
        ("resnet50_sa_paper", 2048, 7),
        ("resnet34_sa_paper", 128, 28),
        ("vgg16_sa_paper", 512, 28),
    ):
        (_, maps), variables = shapes(registry.create(name, 7), registry.find(name).image_size)
        attention = jax.tree.map(jnp.shape, variables["params"]["attention"]["soft_attention"])
        assert attention == {"kernel": (3, 3, channels, 16), "gamma": ()}, name
        assert maps["soft_attention"].shape == (1, 16, side, side), name


@pytest.mark.parametrize("place", ["conv1", "conv2", "shortcut"])
def test_resnet34_stops_inside_a_unit(place):
    module = DattaResNet34(final_endpoint=f"conv3_block1/{place}")
    (x, _), variables = shapes(module, 32)
    assert x.shape == (1, 4, 4, 128)
    inside = set(variables["params"]["conv3_block1"])
    assert inside == {"conv1": {"conv1"}, "conv2": {"conv1", "conv2"}}.get(place, {"shortcut"})


def test_relu_comes_before_batch_norm():
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    stops = [DattaVGG16(final_endpoint=f"block1_conv1{part}") for part in ("/conv", "/relu", "")]
    variables = stops[-1].init(jax.random.key(0), images, train=False)
    raw, active, normalised = (stop.apply(variables, images, train=False)[0] for stop in stops)
    np.testing.assert_array_equal(active, np.maximum(raw, 0))
    # Fresh statistics are mean 0 and variance 1.
    np.testing.assert_allclose(normalised, active / np.sqrt(1 + 1e-3), rtol=1e-5)


def test_unit_is_its_input_where_the_projection_is_nothing():
    """The branches only add to the input, and a 1×1 convolution with ReLU follows."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 6))
    unit = Unit(4)
    variables = unit.init(jax.random.key(1), x, train=False)
    params = variables["params"] | {
        "projection": jax.tree.map(jnp.zeros_like, variables["params"]["projection"])
    }
    got = unit.apply(variables | {"params": params}, x, train=False)
    last = params["conv"]
    np.testing.assert_allclose(
        got, np.maximum(x @ last["kernel"][0, 0] + last["bias"], 0), rtol=1e-4, atol=1e-5
    )
