import jax
import jax.numpy as jnp
import pytest

from jaxattn.errors import InputError
from jaxattn.models import registry
from jaxattn.models.koefler2023 import KoeflerCNN

#: The report's layer list, at 100 × 100.
SHAPES = {
    "conv1": (47, 47, 64),
    "pool1": (23, 23, 64),
    "conv2": (12, 12, 128),
    "pool2": (10, 10, 128),
    "conv3": (10, 10, 256),
    "pool3": (8, 8, 256),
    "conv4": (8, 8, 512),
    "conv5": (8, 8, 512),
    "pool5": (6, 6, 512),
    "conv6": (6, 6, 512),
    "pool6": (4, 4, 512),
    "flatten": (8192,),
    "fc1": (4096,),
    "fc2": (4096,),
    "logits": (7,),
}


def shapes(module, size):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(
        lambda images: module.init_with_output(jax.random.key(0), images, train=False), images
    )


def test_endpoints_are_those_of_the_report():
    (_, endpoints), _ = shapes(KoeflerCNN(7), 100)
    assert {name: x.shape[1:] for name, x in endpoints.items()} == SHAPES


def test_attention_takes_the_place_of_a_pool_and_doubles_the_channels():
    _, plain = shapes(registry.create("koefler_cnn", 7), 100)
    _, attended = shapes(registry.create("koefler_cnn_sa", 7), 100)
    before, after = (
        jax.tree.map(jnp.shape, variables["params"]["backbone"]) for variables in (plain, attended)
    )
    assert before["conv6"]["conv"]["kernel"] == (3, 3, 512, 512)
    assert after["conv6"]["conv"]["kernel"] == (3, 3, 1024, 512)
    del before["conv6"], after["conv6"]
    assert before == after  # so that 8 x 8 still becomes 6 x 6


def test_images_too_small_are_named():
    with pytest.raises(InputError, match="expected larger ones .'pool6' is empty., got 74 x 74"):
        shapes(KoeflerCNN(7), 74)
    shapes(KoeflerCNN(7), 75)
