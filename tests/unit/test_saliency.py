import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.errors import InputError
from jaxattn.models.backbones import BACKBONES
from jaxattn.models.backbones.vgg import VGGBN
from jaxattn.models.yan2019 import GatedClassifier
from jaxattn.saliency import ClassActivation


class Head(nn.Module):
    """A layer whose Grad-CAM can be done by hand: a dense layer sees each position by itself."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = nn.Conv(4, (3, 3), name="features")(images)
        return nn.Dense(3, name="logits")(jnp.tanh(x).reshape(len(x), -1)), {}


def by_hand(variables, images, classes):
    """Grad-CAM of ``Head``: the derivative of tanh times the dense layer's weights."""
    layer = nn.Conv(4, (3, 3))
    x = np.asarray(layer.apply({"params": variables["params"]["features"]}, images))
    kernel = np.asarray(variables["params"]["logits"]["kernel"]).reshape(*x.shape[1:], 3)
    maps = []
    for features, c in zip(x, classes, strict=True):
        weights = ((1 - np.tanh(features) ** 2) * kernel[..., c]).mean((0, 1))
        maps.append(features @ weights)
    return np.stack(maps)


@pytest.mark.parametrize(("target", "classes"), [(2, [2, 2]), (None, None)])
def test_grad_cam_by_hand(target, classes):
    model, images = Head(), jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    variables = model.init(jax.random.key(1), images, train=False)
    if classes is None:
        classes = np.asarray(model.apply(variables, images, train=False)[0].argmax(-1))
    wanted = by_hand(variables, images, classes)
    assert wanted.min() < 0 < wanted.max()
    maps = ClassActivation("features", target)(model, variables, images)
    np.testing.assert_allclose(maps[:, 0], np.maximum(wanted, 0), atol=1e-6)
    maps = ClassActivation("features", target, rectify=False)(model, variables, images)
    np.testing.assert_allclose(maps[:, 0], wanted, atol=1e-6)


def test_cam_of_vgg_gap_is_the_dense_layers_weights_times_pool5():
    """Zhou et al. 2016, equation 2, over the number of positions."""
    options = {"width": 0.0625, "blocks": (1, 1, 1, 1, 1)}
    model = GatedClassifier(2, BACKBONES["torch_vgg16_bn"], options, local=(), gated=False)
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    variables = jax.jit(lambda: model.init(jax.random.key(1), images, train=False))()
    explain = functools.partial(ClassActivation("backbone/pool5", 1, rectify=False), model)
    maps = jax.jit(explain)(variables, images)
    backbone = {kind: tree["backbone"] for kind, tree in variables.items()}
    pool5, _ = jax.jit(functools.partial(VGGBN(**options).apply, train=False))(backbone, images)
    wanted = pool5 @ variables["params"]["logits"]["kernel"][:, 1]
    assert maps.shape == (2, 1, 2, 2)
    np.testing.assert_allclose(4 * maps[:, 0], wanted, atol=1e-6)
    with pytest.raises(InputError, match=r"grad_cam: expected .*\(did you mean 'backbone/p"):
        ClassActivation("backbone/pool6")(model, variables, images)
