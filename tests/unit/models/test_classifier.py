import functools

import jax
import jax.numpy as jnp
import pytest

from jaxattn.errors import InputError
from jaxattn.models import registry
from jaxattn.models.attention import ATTENTION
from jaxattn.models.backbones import Entry
from jaxattn.models.backbones.resnet import ResNet
from jaxattn.models.backbones.vgg import VGG
from jaxattn.models.classifier import Classifier

SMALL_RESNET = Entry(functools.partial(ResNet, blocks=(2, 1, 1, 1)))


def shapes(module, size=64):
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return jax.eval_shape(
        lambda images: module.init_with_output(jax.random.key(0), images, train=False), images
    )


def test_attended_features_side_by_side_or_in_the_features_place():
    module = Classifier(7, SMALL_RESNET, "soft_block", "conv3_block1", {"heads": 5})
    (_, maps), variables = shapes(module)
    assert maps["soft_attention"].shape == (2, 5, 8, 8)
    kernel = variables["params"]["backbone"]["conv4_block1"]["conv1"]["conv"]["kernel"]
    assert kernel.shape == (1, 1, 2 * 512, 256)
    module = Classifier(7, SMALL_RESNET, "soft", "conv3_block1", {"heads": 5})
    (_, maps), variables = shapes(module)
    assert maps["soft_attention"].shape == (2, 5, 8, 8)
    kernel = variables["params"]["backbone"]["conv4_block1"]["conv1"]["conv"]["kernel"]
    assert kernel.shape == (1, 1, 512, 256)
    assert set(variables["params"]["attention"]) == {"kernel", "bias"}


def test_attention_in_the_place_of_a_pool():
    backbone = Entry(functools.partial(VGG, blocks=(1, 1, 1, 1, 1)))
    beside = Classifier(7, backbone, "soft_block", "block4_conv1")
    instead = Classifier(7, backbone, "soft_block", "block4_conv1", skip=("block4_pool",))
    inputs = [
        shapes(module)[1]["params"]["backbone"]["fc1"]["kernel"].shape[0]
        for module in (beside, instead)
    ]
    assert inputs == [1 * 1 * 512, 2 * 2 * 512]


@pytest.mark.parametrize(
    ("attributes", "size", "message"),
    [
        ({"attention_at": "conv6_block1"}, 64, "attention_at: .*did you mean 'conv.*conv6_block1'"),
        ({"attention_at": "logits"}, 64, "attention_at: expected an endpoint with positions"),
        ({"attention_at": "conv2_block1"}, 64, "keeps the 256 channels .*, got 512 channels"),
        ({"skip": ("pool",)}, 64, "skip: .*did you mean 'pool1'.*got 'pool'"),
        ({"attention": "soft"}, 64, "attention and attention_at together, got attention='soft'"),
        (
            {"attention": "sof", "attention_at": "pool1"},
            64,
            "model.attention: .*did you mean 'soft'.*got 'sof'",
        ),
        (
            {"attention": "se", "attention_at": "pool1", "attention_options": {"heads": 2}},
            64,
            "model.attention_options: expected one of dtype, reduction, got 'heads'",
        ),
    ],
)
def test_what_cannot_be_is_said(attributes, size, message):
    if attributes.get("attention_at") and "attention" not in attributes:
        attributes = {"attention": "soft_block", **attributes}
    with pytest.raises(InputError, match=message):
        shapes(Classifier(7, SMALL_RESNET, **attributes), size)


def test_inside_a_stage_of_a_residual_network_attention_keeps_the_channels():
    (_, maps), _ = shapes(Classifier(7, SMALL_RESNET, "soft", "conv2_block1"))
    assert maps["soft_attention"].shape == (2, 16, 16, 16)


@pytest.mark.parametrize("name", sorted({*ATTENTION} - {"patch"}))
@pytest.mark.parametrize("backbone", ["keras_vgg16", "torch_resnet34", "keras_inception_v3"])
def test_any_attention_after_any_endpoint_of_any_backbone(name, backbone):
    """The features go on, and maps have a position for each of the endpoint's."""
    endpoint, side = {
        "keras_vgg16": ("block3_conv3", 40),
        "torch_resnet34": ("conv5_block3", 5),
        "keras_inception_v3": ("mixed2", 17),
    }[backbone]
    module = registry.create(backbone, 7, attention=name, attention_at=endpoint)
    (logits, maps), variables = shapes(module, 160)
    assert logits.shape == (2, 7)
    assert "attention" in variables["params"]
    assert {each.shape[2:] for each in maps.values()} == (set() if name == "se" else {(side, side)})


def test_patch_attention_weighs_the_images_of_a_batch_in_groups():
    options = {"crops": 2}
    module = registry.create(
        "torch_resnet34", 7, attention="patch", attention_at="pool1", attention_options=options
    )
    (_, maps), _ = shapes(module)
    assert maps["patch"].shape == (1, 2, 1, 1)
