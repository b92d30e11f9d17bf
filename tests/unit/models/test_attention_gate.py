import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.errors import InputError
from jaxattn.models.attention.gate import AttentionGate, upsample
from jaxattn.models.backbones.resnet import ResNet

golden = pytest.mark.skipif(
    "JAXATTN_GOLDEN" not in os.environ, reason="JAXATTN_GOLDEN names no folder"
)


def params(w_local, w_global, w_phi, b_phi):
    """The gate's parameters from matrices (C, D)."""
    kernels = {"local": w_local, "guide": w_global, "score": w_phi}
    tree = {name: {"kernel": jnp.asarray(w)[None, None]} for name, w in kernels.items()}
    tree["score"]["bias"] = jnp.asarray(b_phi)
    return {"params": tree}


@golden
@pytest.mark.parametrize("normalise", ["sigmoid", "softmax"])
def test_golden_vectors(normalise):
    file = Path(os.environ["JAXATTN_GOLDEN"]) / f"attention_gate_{normalise}.npz"
    with np.load(file) as stored:
        given = jax.tree.map(jnp.asarray, dict(stored))
    variables = params(*(given[name] for name in ("w_local", "w_global", "w_phi", "b_phi")))
    gate = AttentionGate(features=16, normalise=normalise)
    pooled, attention = gate.apply(variables, given["local"], given["global_"])
    np.testing.assert_allclose(attention[:, 0], given["attention"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pooled, given["pooled"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [((7, 7), (28, 28)), ((2, 3), (5, 9)), ((6, 5), (4, 3))])
def test_upsampling_is_pytorchs(sizes):
    """Any ratio, whole or not, up or down."""
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    (height, width), size = sizes
    x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
    theirs = torch.nn.functional.interpolate(
        torch.tensor(np.array(x)).permute(0, 3, 1, 2),
        size=size,
        mode="bilinear",
        align_corners=False,
    )
    np.testing.assert_allclose(upsample(x, *size), theirs.permute(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize("normalise", ["sigmoid", "softmax"])
def test_gradients_are_pytorchs(normalise):
    """Of the features and of every weight, for a random cotangent of both outputs."""
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    rng = np.random.default_rng(1)
    shapes = {"local": (2, 6, 9, 4), "guide": (2, 2, 3, 5), "w_local": (4, 8), "w_global": (5, 8)}
    shapes |= {"w_phi": (8, 1), "b_phi": (1,)}
    given = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    to_pooled, to_map = (rng.normal(size=s).astype(np.float32) for s in ((2, 4), (2, 1, 6, 9)))

    def ours(x):
        weights = params(x["w_local"], x["w_global"], x["w_phi"], x["b_phi"])
        gate = AttentionGate(8, normalise)
        pooled, attention = gate.apply(weights, x["local"], x["guide"])
        return (pooled * to_pooled).sum() + (attention * to_map).sum()

    x = {name: torch.tensor(value, requires_grad=True) for name, value in given.items()}
    guide = (x["guide"] @ x["w_global"]).permute(0, 3, 1, 2)
    guide = torch.nn.functional.interpolate(guide, size=(6, 9), mode="bilinear")
    projected = x["local"] @ x["w_local"] + guide.permute(0, 2, 3, 1)
    scores = (torch.relu(projected) @ x["w_phi"] + x["b_phi"])[..., 0]
    if normalise == "sigmoid":
        attention = torch.sigmoid(scores)
        pooled = (attention[..., None] * x["local"]).mean((1, 2))
    else:
        attention = torch.softmax(scores.flatten(1), 1).reshape(scores.shape)
        pooled = (attention[..., None] * x["local"]).sum((1, 2))
    value = (pooled * torch.tensor(to_pooled)).sum()
    value += (attention * torch.tensor(to_map)[:, 0]).sum()
    value.backward()
    our_value, gradients = jax.value_and_grad(ours)(jax.tree.map(jnp.asarray, given))
    assert float(our_value) == pytest.approx(value.item(), rel=1e-4)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            gradient, x[name].grad, rtol=1e-3, atol=1e-5, err_msg=f"gradient of {name}"
        )


def test_between_two_endpoints_of_another_backbone():
    """Odd sizes that are no multiples of each other, in bfloat16; the map stays float32."""
    backbone = ResNet(blocks=(1, 1, 1, 1), final_endpoint="conv5_block1", dtype=jnp.bfloat16)
    images = jnp.zeros((2, 70, 50, 3))
    last, endpoints = jax.eval_shape(
        lambda x: backbone.init_with_output(jax.random.key(0), x, train=False)[0], images
    )
    local = jnp.ones(endpoints["conv3_block1"].shape, jnp.bfloat16)
    guide = jnp.ones(last.shape, jnp.bfloat16)
    (pooled, attention), _ = AttentionGate(dtype=jnp.bfloat16).init_with_output(
        jax.random.key(0), local, guide
    )
    assert attention.shape == (2, 1, *local.shape[1:3])
    assert pooled.shape == (2, 512)
    assert attention.dtype == pooled.dtype == jnp.float32


def test_weights_start_as_he_et_al():
    local, guide = jnp.zeros((1, 2, 2, 256)), jnp.zeros((1, 1, 1, 512))
    tree = AttentionGate().init(jax.random.key(0), local, guide)["params"]
    for name, fan_in in (("local", 256), ("guide", 512)):
        kernel = tree[name]["kernel"]
        assert float(kernel.std()) == pytest.approx(np.sqrt(2 / fan_in), rel=0.02)
        assert np.abs(kernel).max() > 3.5 * np.sqrt(2 / fan_in)  # normal, not cut off
        assert set(tree[name]) == {"kernel"}
    assert float(tree["score"]["bias"][0]) == 0


def test_unknown_normalisation_is_one_clear_error():
    with pytest.raises(InputError, match="did you mean 'sigmoid'"):
        AttentionGate(normalise="sigmoids").init(
            jax.random.key(0), jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 1, 1, 3))
        )
