"""AttnMel-CNN and its baselines against the same networks written in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.errors import InputError
from jaxattn.models.backbones import BACKBONES
from jaxattn.models.backbones.vgg import VGGBN
from jaxattn.models.yan2019 import GatedClassifier

attnmel = functools.partial(GatedClassifier, 2, BACKBONES["torch_vgg16_bn"])


def random_variables(model, images):
    """Parameters as they start, and statistics and biases that are not 0 and 1."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        low, high = {"scale": (0.5, 1.0), "var": (0.5, 1.5)}.get(kind, (-0.3, 0.3))
        return rng.uniform(low, high, leaf.shape)

    drawn = jax.tree_util.tree_map_with_path(draw, shapes)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), drawn)


class Torch:
    """The published networks from their description, on the variables of a JAX model."""

    def __init__(self, torch, variables):
        self.torch, self.F = torch, torch.nn.functional
        self.params, self.stats = variables["params"], variables["batch_stats"]

    def conv(self, x, weights, **options):
        kernel = self.torch.tensor(np.array(weights["kernel"])).permute(3, 2, 0, 1)
        bias = self.torch.tensor(np.array(weights["bias"])) if "bias" in weights else None
        return self.F.conv2d(x, kernel, bias, **options)

    def linear(self, x, weights):
        kernel, bias = (self.torch.tensor(np.array(weights[k])) for k in ("kernel", "bias"))
        return x @ kernel + bias

    def pools(self, x):
        pools = []
        for i, convs in enumerate((2, 2, 3, 3, 3), 1):
            for j in range(1, convs + 1):
                weights = self.params["backbone"][f"conv{i}_{j}"]
                stats = self.stats["backbone"][f"conv{i}_{j}"]["bn"]
                x = self.conv(x, weights["conv"], padding=1)
                x = self.F.batch_norm(
                    x,
                    *(self.torch.tensor(np.array(stats[k])) for k in ("mean", "var")),
                    *(self.torch.tensor(np.array(weights["bn"][k])) for k in ("scale", "bias")),
                    eps=1e-5,
                )
                x = self.F.relu(x)
            x = self.F.max_pool2d(x, 2)
            pools.append(x)
        return pools

    def gate(self, local, guide, weights, normalise):
        up = self.F.interpolate(
            self.conv(guide, weights["guide"]),
            scale_factor=local.shape[-1] // guide.shape[-1],
            mode="bilinear",
            align_corners=False,
        )
        scores = self.conv(self.F.relu(self.conv(local, weights["local"]) + up), weights["score"])
        if normalise == "sigmoid":
            attention = self.torch.sigmoid(scores)
            return attention, self.F.adaptive_avg_pool2d(attention * local, 1).flatten(1)
        attention = self.F.softmax(scores.flatten(1), 1).view_as(scores)
        return attention, (attention * local).flatten(2).sum(2)

    def attnmel(self, images, normalise):
        *_, pool3, pool4, pool5 = self.pools(images)
        g = self.F.avg_pool2d(pool5, 7).flatten(1)
        gates = [self.params[f"gate_pool{i}"] for i in (3, 4)]
        a1, g1 = self.gate(pool3, pool5, gates[0], normalise)
        a2, g2 = self.gate(pool4, pool5, gates[1], normalise)
        logits = self.linear(self.torch.cat([g, g1, g2], 1), self.params["logits"])
        return logits, {"attention_pool3": a1, "attention_pool4": a2}

    def melcnn(self, images):
        *_, pool3, pool4, pool5 = self.pools(images)
        means = [pool.mean((2, 3)) for pool in (pool5, pool3, pool4)]
        return self.linear(self.torch.cat(means, 1), self.params["logits"])

    def gap(self, images):
        return self.linear(self.pools(images)[-1].mean((2, 3)), self.params["logits"])


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (2, 224, 224, 3))


def torch_twin(variables, images):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    return Torch(torch, variables), torch.tensor(np.array(images)).permute(0, 3, 1, 2)


def test_attnmel_is_the_network_in_pytorch(images):
    """Full width and size: logits and both maps."""
    model = attnmel()
    variables = random_variables(model, images)
    twin, given = torch_twin(variables, images)
    logits, maps = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    their_logits, their_maps = twin.attnmel(given, "sigmoid")
    assert maps["attention_pool3"].shape == (2, 1, 28, 28)
    assert maps["attention_pool4"].shape == (2, 1, 14, 14)
    np.testing.assert_allclose(logits, their_logits, rtol=1e-4, atol=1e-4)
    assert set(maps) == set(their_maps)
    for name, ours in maps.items():
        assert ours.std() > 0.02  # a constant map would agree with much
        np.testing.assert_allclose(ours, their_maps[name], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({"normalise": "softmax"}, lambda twin, x: twin.attnmel(x, "softmax")[0]),
        ({"gated": False}, Torch.melcnn),
        ({"local": ()}, Torch.gap),
    ],
    ids=["softmax", "melcnn", "gap"],
)
def test_variants_are_the_networks_in_pytorch(images, options, theirs):
    model = attnmel(backbone_options={"width": 0.125}, **options)
    variables = random_variables(model, images)
    twin, given = torch_twin(variables, images)
    logits, _ = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    np.testing.assert_allclose(logits, theirs(twin, given), rtol=1e-4, atol=1e-4)


def test_vgg16_flattens_as_pytorch(images):
    """Dense layers on 7 × 7 positions, channels first."""
    model = VGGBN(num_classes=2, width=0.125)
    variables = random_variables(model, images)
    nested = {kind: {"backbone": tree} for kind, tree in variables.items()}
    twin, given = torch_twin(nested, images)
    logits, _ = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    x = twin.pools(given)[-1].flatten(1)
    for name in ("fc1", "fc2"):
        x = twin.F.relu(twin.linear(x, variables["params"][name]))
    theirs = twin.linear(x, variables["params"]["logits"])
    np.testing.assert_allclose(logits, theirs, rtol=1e-4, atol=1e-4)


def parameters(model):
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def test_parameter_counts():
    """torchvision's printed count for 1000 classes; without dense layers about 100M fewer."""
    assert parameters(VGGBN(num_classes=1000)) == 138_365_992
    convolutions = 14_723_136  # torchvision's vgg16_bn.features
    gates = 256 * (256 + 512) + 256 * (512 + 512) + 2 * (256 + 1)
    assert parameters(attnmel()) == convolutions + gates + (512 + 256 + 512) * 2 + 2
    assert parameters(attnmel(local=())) == convolutions + 512 * 2 + 2


def test_weights_start_as_published():
    model = attnmel(backbone_options={"width": 0.25})
    given = jnp.zeros((1, 32, 32, 3))
    params = jax.jit(lambda: model.init(jax.random.key(0), given, train=False))()["params"]
    assert float(params["logits"]["kernel"].std()) == pytest.approx(0.01, rel=0.06)
    assert not params["logits"]["bias"].any()
    kernel = params["backbone"]["conv4_1"]["conv"]["kernel"]
    assert float(kernel.std()) == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)


def test_statistics_move_by_a_tenth():
    """PyTorch's momentum of 0.1."""
    model = VGGBN(final_endpoint="conv1_1", width=0.0625)
    given = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = model.init(jax.random.key(1), given, train=False)
    _, changed = model.apply(variables, given, train=True, mutable=["batch_stats"])
    x = jax.lax.conv_general_dilated(
        given,
        variables["params"]["conv1_1"]["conv"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    mean = changed["batch_stats"]["conv1_1"]["bn"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * x.mean((0, 1, 2)), atol=1e-6)


def test_a_local_endpoint_must_come_before_the_guide():
    model = attnmel(guide="pool4", local=("pool3", "pool5"))
    with pytest.raises(InputError, match="model.local: expected .*got 'pool5'"):
        jax.eval_shape(
            lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
        )
