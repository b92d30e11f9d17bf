"""What holds for every registered model, and the published counts of those that have them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.models import registry
from jaxattn.models.backbones import BACKBONES, Entry
from jaxattn.models.backbones.datta_resnet34 import DattaResNet34

#: Every model of the package, without what tests register.
NAMES = [name for name in registry.names() if name != "tiny"]
CLASSES, BATCH = 3, 4

#: Total, trainable and the attention layer's parameters, and the inputs of the last dense layer, as
#: the released notebooks print them.
PUBLISHED = {
    "irv2": (47_550_631, 47_496_231, 0, 12_288),
    "irv2_sa": (47_535_287, 47_480_887, 27_664, 6_144),
    "densenet201": (17_474_247, 17_260_935, 0, 6_272),
    "densenet201_sa": (17_477_463, 17_264_151, 18_448, 4_096),
    "resnet50": (23_602_055, 23_548_935, 0, 2_048),
    "resnet50_sa": (23_911_319, 23_858_199, 294_928, 4_096),
    "resnet34": (30_805_895, 30_783_495, 0, 512),
    "resnet34_sa": (31_414_167, 31_391_767, 18_448, 512),
    "vgg16": (60_217_671, 60_209_223, 0, 4_096),
    "vgg16_sa": (62_650_711, 62_642_263, 73_744, 4_096),
    "isic_irv2_sa_5x5": (47_550_450, 47_496_434, 27_664, 29_376),
    "isic_irv2_sa_12x12": (34_940_338, 34_892_210, 23_056, 1_024),
    "koefler_cnn_sa": (59_069_331, 59_065_363, 55_308, 4_096),
}

#: The maps of models with attention; the size of the features is that of the papers' figures.
MAPS = {
    "irv2_sa": (16, 8, 8),
    "densenet201_sa": (16, 7, 7),
    "resnet50_sa": (16, 7, 7),
    "resnet34_sa": (16, 28, 28),
    "vgg16_sa": (16, 28, 28),
    "isic_irv2_sa_5x5": (16, 5, 5),
    "isic_irv2_sa_12x12": (16, 12, 12),
    "koefler_cnn_sa": (12, 8, 8),
}


def smaller(name, **changes):
    """A registered backbone with fewer blocks."""
    entry = BACKBONES[name]
    return dataclasses.replace(entry, make=functools.partial(entry.make, **changes))


_IRV2 = smaller("keras_inception_resnet_v2", repeats=(0, 0, 2))
_DENSENET = smaller("keras_densenet121", blocks=(1, 1, 1, 2))
_RESNET50 = smaller("keras_resnet50", blocks=(1, 1, 1, 1))
_RESNET34 = Entry(functools.partial(DattaResNet34, blocks=(1, 1, 1, 1)))
_VGG = smaller("keras_vgg16", blocks=(1, 1, 1, 1, 1))
_VGG_BN = smaller("torch_vgg16_bn", blocks=(1, 1, 1, 1, 1), width=0.25)

AFTER = {"attention": "soft_block"}

#: The same networks with fewer blocks and for smaller images: attributes and image size. Networks
#: without attention of their own get it here, after a stage in their middle.
SMALL = {
    "irv2": ({"backbone": _IRV2, "endpoint": "block8_1/branch0/conv1/bn"}, 139),
    "irv2_sa": ({"backbone": _IRV2, "endpoint": "block8_1/branch0/conv1/bn"}, 139),
    "irv2_sa_paper": ({"backbone": _IRV2, "endpoint": "block8_2"}, 139),
    "isic_irv2_sa_5x5": ({"backbone": _IRV2, "endpoint": "block8_1/branch0/conv1/conv"}, 139),
    "isic_irv2_sa_12x12": (
        {
            "backbone": smaller("keras_inception_resnet_v2", repeats=(0, 1, 0)),
            "endpoint": "block17_1/branch1/conv2",
            "units": 2,
        },
        75,
    ),
    "densenet201": ({"backbone": _DENSENET, "endpoint": "conv5_block1/conv1"}, 64),
    "densenet201_sa": ({"backbone": _DENSENET, "endpoint": "conv5_block1/conv1"}, 64),
    "resnet50": ({"backbone": _RESNET50, "endpoint": "conv5_block1"}, 64),
    "resnet50_sa": ({"backbone": _RESNET50, "endpoint": "conv5_block1"}, 64),
    "resnet34": ({"backbone": _RESNET34}, 32),
    "resnet34_sa": ({"backbone": _RESNET34, "attention_at": "conv3_block1"}, 32),
    "vgg16": ({}, 16),
    "vgg16_sa": ({}, 16),
    "koefler_cnn": ({}, 75),
    "koefler_cnn_sa": ({}, 75),
    "keras_densenet121": (
        {"backbone": _DENSENET, **AFTER, "attention_at": "conv3_block1"},
        64,
    ),
    "keras_inception_resnet_v2": (
        {"backbone": _IRV2, "attention": "soft", "attention_at": "mixed_5b"},
        75,
    ),
    "keras_inception_v3": ({"attention": "soft", "attention_at": "mixed2"}, 75),
    "keras_resnet50": (
        {"backbone": _RESNET50, **AFTER, "attention_at": "conv3_block1"},
        64,
    ),
    "vgg16_bn": ({"backbone": _VGG_BN}, 32),
    "vgg16_bn_gap": ({"backbone": _VGG_BN}, 32),
    "melcnn": ({"backbone": _VGG_BN}, 32),
    "attnmelcnn": ({"backbone": _VGG_BN}, 32),
    "gessert2019": ({"backbone": _DENSENET}, 64),
    "torch_densenet121": (
        {"backbone": _DENSENET, **AFTER, "attention_at": "conv3_block1"},
        64,
    ),
    "torch_resnet34": (
        {
            "backbone": smaller("torch_resnet34", blocks=(1, 1)),
            "attention": "soft_block",
            "attention_at": "conv3_block1",
        },
        64,
    ),
    "torch_resnet50": (
        {
            "backbone": smaller("torch_resnet50", blocks=(1, 1)),
            "attention": "soft_block",
            "attention_at": "conv3_block1",
        },
        64,
    ),
    "torch_se_resnext50": (
        {
            "backbone": smaller("torch_se_resnext50", blocks=(1, 1)),
            "attention": "soft_block",
            "attention_at": "conv3_block1",
        },
        64,
    ),
    "keras_vgg16": (
        {
            "backbone": _VGG,
            "attention": "soft_block",
            "attention_at": "block3_conv1",
            "skip": ("block3_pool",),
        },
        32,
    ),
}

#: These differ from another in the number of blocks, in padding and constants, or in the equation
#: of the attention layer (which ``irv2_sa_paper`` has) alone.
ALIKE = {
    *("densenet201_sa_paper", "resnet50_sa_paper", "resnet34_sa_paper", "vgg16_sa_paper"),
    *("keras_densenet169", "keras_densenet201", "keras_resnet101", "keras_resnet152"),
    *("keras_vgg19", "koefler_cnn_sa_paper", "torch_inception_v3", "torch_se_resnext50_cadene"),
    *(f"torch_efficientnet_lite{variant}" for variant in ("1", "2", "3", "4", "0_timm")),
}

# Here compiling costs far more than running.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


@functools.cache
def published(name):
    """Outputs and variables at the published size, as shapes."""
    entry = registry.find(name)
    images = jax.ShapeDtypeStruct((2, entry.image_size, entry.image_size, 3), jnp.float32)
    model = registry.create(name, entry.num_classes, dtype=jnp.bfloat16)
    return jax.eval_shape(
        lambda images: model.init_with_output(jax.random.key(0), images, train=False), images
    )


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def small(name):
    entry = registry.find(name)
    attributes, size = SMALL.get(name, ({}, min(entry.image_size, 64)))
    model = entry.module(
        num_classes=CLASSES, dtype=jnp.bfloat16, **(dict(entry.fixed) | attributes)
    )
    return model, jax.random.uniform(jax.random.key(0), (BATCH, size, size, 3), minval=-1)


def initial(model, images):
    """Variables as a model might draw them: its own initializers take long to compile."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if len(leaf.shape) > 1:
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return scale * rng.standard_normal(leaf.shape, np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var", "gamma"), np.float32)

    shapes = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), images
    )
    return jax.tree_util.tree_map_with_path(draw, shapes)


def released_reach(rows, height):
    """Which of a released Soft-Attention kernel's rows meet features of this height."""
    return np.abs(np.arange(rows) - (rows - 1) // 2) < height


def cancelled(path):
    """Whether batch norm subtracts this bias again: those of Keras' ResNet and of VGG-BN."""
    keys = [key.key for key in path]
    resnet = ("conv1", "conv2", "conv3", "shortcut")
    return keys[-2:] == ["conv", "bias"] and (keys[-3] in resnet or "_" in keys[-3])


@pytest.mark.parametrize("name", NAMES)
def test_every_model_at_its_published_size(name):
    entry = registry.find(name)
    (logits, maps), variables = published(name)
    assert (logits.shape, logits.dtype) == ((2, entry.num_classes), jnp.float32)
    assert all(m.ndim == 4 and m.shape[0] == 2 and m.dtype == jnp.float32 for m in maps.values())
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert set(variables) <= {"params", "batch_stats"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    (_, maps), variables = published(name)
    params = variables["params"]
    logits = params["logits"] if "logits" in params else params["backbone"]["logits"]
    attention = count(params.get("attention", {}))
    assert PUBLISHED[name] == (
        count(variables), count(params), attention, logits["kernel"].shape[0]
    )  # fmt: skip
    assert {m.shape[1:] for m in maps.values()} == ({MAPS[name]} if attention else set())


@pytest.mark.parametrize("name", sorted({*NAMES} - ALIKE))
def test_every_model_trains_in_bfloat16(name):
    model, images = small(name)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(variables, images):
        key = jax.random.key(1, impl="rbg")  # compiles quickly
        labels = jax.nn.one_hot(jnp.arange(BATCH) % CLASSES, CLASSES)

        def loss(params):
            (logits, maps), _ = model.apply(
                variables | {"params": params}, images, train=True,
                rngs={"dropout": key}, mutable=["batch_stats"],
            )  # fmt: skip
            return -(jax.nn.log_softmax(logits) * labels).sum(), (logits, maps)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    (_, (logits, maps)), gradients = step(initial(model, images), images)
    assert np.all(np.isfinite(logits))
    for key, attention in maps.items():
        assert np.all(attention >= 0), key
        if name == "attnmelcnn":  # a sigmoid's
            assert np.all(attention < 1), key
        else:
            np.testing.assert_allclose(attention.sum((2, 3)), 1, atol=1e-5, err_msg=key)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        where = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(gradient)), where
        if gradient.ndim == 5:  # (C, 3, 3, 1, K): only the released layer has such a kernel
            reach = released_reach(len(gradient), maps["soft_attention"].shape[2])
            np.testing.assert_array_equal(np.any(gradient != 0, (1, 2, 3, 4)), reach, where)
        elif not cancelled(path):
            assert np.any(gradient != 0), where
