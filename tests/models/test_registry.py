import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import models
from jaxattn.errors import InputError

# The same network with fewer of its repeated blocks and smaller images, where it is large.
INCEPTION = ({"repeats": (0, 0, 2)}, 139)
CHEAP = {"irv2": INCEPTION, "irv2_sa": INCEPTION, "irv2_sa_paper": INCEPTION}
CLASSES, BATCH = 3, 4

# Here compiling costs far more than running.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


def build(name, dtype=jnp.float32):
    options, size = CHEAP.get(name, ({}, min(models.find(name).image_size, 64)))
    model = models.build(name, CLASSES, dtype=dtype, **options)
    images = jax.random.uniform(jax.random.key(0), (BATCH, size, size, 3), minval=-1)
    return model, images


def released_reach(rows, height):
    """Which of a released Soft-Attention kernel's rows meet features of this height."""
    return np.abs(np.arange(rows) - (rows - 1) // 2) < height


@pytest.mark.parametrize("name", models.names())
def test_every_model_at_its_published_size(name):
    size = models.find(name).image_size
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    model = models.build(name, CLASSES, dtype=jnp.bfloat16)
    (logits, maps), variables = jax.eval_shape(
        lambda images: model.init_with_output(jax.random.key(0), images, train=False), images
    )
    assert (logits.shape, logits.dtype) == ((2, CLASSES), jnp.float32)
    assert all(m.ndim == 4 and m.shape[0] == 2 and m.dtype == jnp.float32 for m in maps.values())
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert set(variables) <= {"params", "batch_stats"}


@pytest.mark.parametrize("name", models.names())
def test_every_model_trains_in_bfloat16(name):
    model, images = build(name, jnp.bfloat16)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(images):
        key = jax.random.key(1, impl="rbg")  # compiles quickly
        variables = model.init(key, images, train=False)
        labels = jax.nn.one_hot(jnp.arange(BATCH) % CLASSES, CLASSES)

        def loss(params):
            (logits, maps), _ = model.apply(
                variables | {"params": params}, images, train=True,
                rngs={"dropout": key}, mutable=["batch_stats"],
            )  # fmt: skip
            return -(jax.nn.log_softmax(logits) * labels).sum(), (logits, maps)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    (_, (logits, maps)), gradients = step(images)
    assert np.all(np.isfinite(logits))
    for key, attention in maps.items():
        assert np.all(attention >= 0), key
        np.testing.assert_allclose(attention.sum((2, 3)), 1, atol=1e-5, err_msg=key)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        where = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(gradient)), where
        if gradient.ndim == 5:  # (C, 3, 3, 1, K): only the released layer has such a kernel
            reach = released_reach(len(gradient), maps["soft_attention"].shape[2])
            np.testing.assert_array_equal(np.any(gradient != 0, (1, 2, 3, 4)), reach, where)
        else:
            assert np.any(gradient != 0), where


def test_unknown_models_and_options_are_named():
    with pytest.raises(InputError, match=re.escape("'irv2_as', which is no known model; did")):
        models.build("irv2_as", 7)
    with pytest.raises(InputError, match=r"option 'repeat' is none of .*did you mean 'repeats'"):
        models.build("irv2_sa", 7, repeat=(1, 1, 2))
    with pytest.raises(InputError, match="option 'semantics' is none of model 'irv2'"):
        models.build("irv2", 7, semantics="paper")


def test_options_and_classes_reach_the_model():
    model = models.build("irv2_sa", 5, dtype=jnp.bfloat16, heads=4)
    assert (model.num_classes, model.heads, model.dtype) == (5, 4, jnp.bfloat16)
    assert set(models.find("irv2_sa").options) == {"heads", "dropout_rate", "repeats"}
