"""The published golden vectors, PyTorch's GRU, and equivalences that the heads must have."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.errors import InputError
from jaxattn.models.attention.patch import GRUAggregation, PatchAttention
from jaxattn.models.backbones import Entry
from jaxattn.models.backbones.densenet import DenseNet
from jaxattn.models.gessert2019 import HEADS, PatchClassifier

pytestmark = pytest.mark.usefixtures("mixed_dtypes")

small = functools.partial(DenseNet, blocks=(1, 1, 1, 1), framework="torch")
SMALL = Entry(small)


@pytest.mark.parametrize("what", ["crops", "features"])
def test_golden_vectors(what):
    """Initial attention on pixels and end attention on feature vectors."""
    folder = os.environ.get("JAXATTN_GOLDEN")
    if not folder:
        pytest.skip("JAXATTN_GOLDEN names no folder")
    golden = np.load(Path(folder) / "patch_attention.npz")
    x = golden[what]
    params = {"dense": {"kernel": golden["kernel"], "bias": golden["bias"]}}
    module = PatchAttention(x.shape[1])
    folded = jnp.asarray(x.reshape(-1, *x.shape[2:]))
    out, weights = module.apply({"params": params}, folded, train=False)
    np.testing.assert_allclose(out.reshape(x.shape), golden[f"{what}_out"], atol=1e-5)
    np.testing.assert_allclose(weights[..., 0, 0], golden[f"{what}_weights"], atol=1e-5)


def test_gru_is_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch's GRU is compared with")
    torch.manual_seed(0)
    theirs = torch.nn.GRU(12, 7, batch_first=True)
    x = np.random.default_rng(0).normal(size=(3, 5, 12)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x))[1][0].numpy()
        w_i, w_h, b_i, b_h = (p.numpy() for p in theirs.parameters())
    cell = {}
    for k, gate in enumerate("rzn"):  # PyTorch stacks reset, update and new
        part = slice(7 * k, 7 * k + 7)
        merged = b_i[part] + (0 if gate == "n" else b_h[part])
        cell[f"i{gate}"] = {"kernel": w_i[part].T, "bias": merged}
        cell[f"h{gate}"] = {"kernel": w_h[part].T}
    cell["hn"]["bias"] = b_h[14:]
    params = {"params": {"cell": cell}}
    ours = GRUAggregation(crops=5, units=7).apply(params, jnp.asarray(x.reshape(15, 12)))
    np.testing.assert_allclose(ours, wanted, atol=1e-6)


def apply(model, images, **changes):
    variables = model.init(jax.random.key(0), images, train=False)
    for path, value in changes.items():
        leaf = variables["params"]
        *nodes, last = path.split("__")
        for node in nodes:
            leaf = leaf[node]
        leaf[last] = value
    return model.apply(variables, images, train=False), variables


IMAGES = np.random.default_rng(0).normal(size=(2, 4, 32, 32, 3)).astype(np.float32)


def test_crops_share_one_backbone_and_logits_are_averaged():
    """End pooling is the mean over the plain classifier's logits of each crop."""
    model = PatchClassifier(3, SMALL)
    (logits, maps), variables = apply(model, jnp.asarray(IMAGES))
    plain, _ = model.apply(variables, jnp.asarray(IMAGES.reshape(8, 32, 32, 3)), train=False)
    np.testing.assert_allclose(logits, plain.reshape(2, 4, 3).mean(1), atol=1e-5)
    assert maps == {}


def test_heads_by_hand():
    """From the crops' pooled features, which all heads share."""
    features, _ = small().apply(
        {
            k: v["backbone"]
            for k, v in PatchClassifier(3, SMALL)
            .init(jax.random.key(0), jnp.asarray(IMAGES), train=False)
            .items()
        },
        jnp.asarray(IMAGES.reshape(8, 32, 32, 3)),
        train=False,
    )
    crops = np.asarray(features).mean((1, 2)).reshape(2, 4, -1)
    for head in ("sum", "conv", "concat"):
        (logits, _), variables = apply(PatchClassifier(3, SMALL, head=head), jnp.asarray(IMAGES))
        params = jax.tree.map(np.asarray, variables["params"])
        # Parameters of the backbone are drawn by their path alone.
        joined = {
            "sum": crops.sum(1),
            "concat": crops.reshape(2, -1),
        }.get(head)
        if head == "conv":
            kernel = params["conv"]["kernel"][:, 0]
            joined = np.einsum("bnf,n->bf", crops, kernel) + params["conv"]["bias"]
        wanted = joined @ params["logits"]["kernel"] + params["logits"]["bias"]
        np.testing.assert_allclose(logits, wanted, atol=1e-4, err_msg=head)


@pytest.mark.parametrize("place", ["initial", "pool2", "end"])
def test_weights_of_one_leave_nothing_changed(place):
    """With weights driven to 1, attention at any place is the network without it."""
    plain, _ = apply(PatchClassifier(3, SMALL), jnp.asarray(IMAGES))
    bias = {f"attention_{place}__dense__bias": jnp.full(4, 30.0)}
    model = PatchClassifier(3, SMALL, attention=(place,))
    (logits, maps), _ = apply(model, jnp.asarray(IMAGES), **bias)
    np.testing.assert_allclose(logits, plain[0], atol=1e-5)
    assert {name: each.shape for name, each in maps.items()} == {
        f"patch_attention_{place}": (2, 4, 1, 1)
    }
    # And a crop that is weighed by nothing at the end leaves no trace of its own.
    none = {f"attention_{place}__dense__bias": jnp.array([30.0, 30, 30, -90])}
    (logits, maps), _ = apply(model, jnp.asarray(IMAGES), **none)
    assert float(maps[f"patch_attention_{place}"][..., 3, 0, 0].max()) < 1e-10
    changed = IMAGES.copy()
    changed[:, 3] = changed[:, 3, ::-1]
    (again, _), _ = apply(model, jnp.asarray(changed), **none)
    np.testing.assert_allclose(logits, again, atol=1e-5)


def test_dual_attention_and_the_gru_return_what_they_should():
    (logits, maps), _ = apply(
        PatchClassifier(3, SMALL, attention=("initial", "end")), jnp.asarray(IMAGES)
    )
    assert set(maps) == {"patch_attention_initial", "patch_attention_end"}
    assert logits.shape == (2, 3)
    model = PatchClassifier(3, SMALL, head="gru", units=5)
    (logits, maps), variables = apply(model, jnp.asarray(IMAGES))
    assert maps == {}
    # The order of the crops matters to it.
    other, _ = model.apply(variables, jnp.asarray(IMAGES[:, ::-1]), train=False)
    assert float(jnp.abs(logits - other).max()) > 1e-4


def test_parameters_in_the_publisheds_number():
    """The paper: attention adds about 0.001 per cent to the parameters: 2 × (81 + 9)."""
    images = jax.ShapeDtypeStruct((1, 9, 64, 64, 3), jnp.float32)

    def count(**options):
        model = PatchClassifier(7, "torch_densenet121", "bn", **options)
        init = lambda images: model.init(jax.random.key(0), images, train=False)  # noqa: E731
        shapes = jax.eval_shape(init, images)["params"]
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    # torchvision's DenseNet-121 has 7,978,856 parameters, 1,025,000 of them its classifier's.
    assert count() == 7_978_856 - 1_025_000 + 7 * 1024 + 7
    assert count(attention=("initial", "end")) - count() == 180


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"head": "gru"}, (1, 32, 32, 3), "expected 'ordered' for model"),
        ({"attention": ("end",)}, (1, 32, 32, 3), "expected 'ordered' for model"),
        ({"head": "mean"}, (1, 4, 32, 32, 3), "model.head: expected one of .*got 'mean'"),
        ({"attention": ("poool2",)}, (1, 4, 32, 32, 3), "did you mean 'pool2'"),
        (
            {"backbone": "densenet"},
            (1, 4, 32, 32, 3),
            "model.backbone: .*got 'densenet'",
        ),
    ],
)
def test_wrong_options(options, shape, message):
    model = PatchClassifier(**{"num_classes": 3, "backbone": SMALL} | options)
    with pytest.raises(InputError, match=message):
        model.init(jax.random.key(0), jnp.zeros(shape), train=False)
    assert "end_pool" in HEADS
