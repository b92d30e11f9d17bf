import functools

import jax
import jax.numpy as jnp
import pytest

from jaxattn.errors import InputError
from jaxattn.models.classifier import Classifier
from jaxattn.models.resnet import ResNet
from jaxattn.models.vgg import VGG

SMALL_RESNET = functools.partial(ResNet, blocks=(2, 1, 1, 1))


def shapes(module, size=64):
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return jax.eval_shape(
        lambda images: module.init_with_output(jax.random.key(0), images, train=False), images
    )


def test_attended_features_side_by_side_or_in_the_features_place():
    (_, maps), variables = shapes(Classifier(7, SMALL_RESNET, "conv3_block1", heads=5))
    assert maps["soft_attention"].shape == (2, 5, 8, 8)
    kernel = variables["params"]["backbone"]["conv4_block1"]["conv1"]["conv"]["kernel"]
    assert kernel.shape == (1, 1, 2 * 512, 256)
    module = Classifier(7, SMALL_RESNET, "conv3_block1", heads=5, join=False)
    (_, maps), variables = shapes(module)
    assert maps["soft_attention"].shape == (2, 5, 8, 8)
    kernel = variables["params"]["backbone"]["conv4_block1"]["conv1"]["conv"]["kernel"]
    assert kernel.shape == (1, 1, 512, 256)
    assert set(variables["params"]["attention"]) == {"kernel", "bias"}


def test_attention_in_the_place_of_a_pool():
    backbone = functools.partial(VGG, blocks=(1, 1, 1, 1, 1))
    beside = Classifier(7, backbone, "block4_conv1")
    instead = Classifier(7, backbone, "block4_conv1", skip=("block4_pool",))
    inputs = [
        shapes(module)[1]["params"]["backbone"]["fc1"]["kernel"].shape[0]
        for module in (beside, instead)
    ]
    assert inputs == [1 * 1 * 512, 2 * 2 * 512]


@pytest.mark.parametrize(
    ("attributes", "size", "message"),
    [
        ({"attention_at": "conv6_block1"}, 64, "plugin 'conv6_block1'.*did you mean 'conv"),
        ({"attention_at": "logits"}, 64, "plugin 'logits' is where there are no positions"),
        ({"attention_at": "conv2_block1"}, 64, "block of 256 channels is given 512; attention"),
        ({"skip": ("pool",)}, 64, "skip 'pool' is no endpoint; did you mean 'pool1'"),
    ],
)
def test_what_cannot_be_is_said(attributes, size, message):
    with pytest.raises(InputError, match=message):
        shapes(Classifier(7, SMALL_RESNET, **attributes), size)


def test_inside_a_stage_of_a_residual_network_attention_keeps_the_channels():
    (_, maps), _ = shapes(Classifier(7, SMALL_RESNET, "conv2_block1", join=False))
    assert maps["soft_attention"].shape == (2, 16, 16, 16)
