import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from jaxattn import optimizers
from jaxattn.config import base
from jaxattn.errors import InputError
from jaxattn.models import registry


def config(**fields):
    made = base().optimizer
    made.update(schedule="constant", warmup=0.0, **fields)
    return made


def trajectory(optimizer, start, gradients):
    params, state, path = start, optimizer.init(start), []
    for gradient in gradients:
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
            updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


@pytest.mark.parametrize(("rate", "eps"), [(0.01, 0.1), (0.001, 1e-7)])
def test_keras_adam_is_keras(rate, eps):
    """Step by step against keras.optimizers.Adam, with the epsilon of Datta et al. 2021."""
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    start = rng.normal(size=5).astype(np.float32)
    gradients = rng.normal(size=(12, 5)).astype(np.float32) * 0.3
    variable = keras.Variable(start)
    theirs = keras.optimizers.Adam(rate, epsilon=eps)
    optimizer = optimizers.make(config(name="keras_adam", learning_rate=rate, eps=eps), 12)
    path = trajectory(optimizer, jnp.asarray(start), [jnp.asarray(g) for g in gradients])
    for gradient, ours in zip(gradients, path, strict=True):
        theirs.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        np.testing.assert_allclose(ours, np.asarray(variable.value), rtol=1e-5, atol=1e-7)
    # What the difference is about: optax' own Adam is another optimizer at this epsilon.
    plain = trajectory(optax.adam(rate, eps=eps), jnp.asarray(start), [jnp.asarray(gradients[0])])
    if eps == 0.1:
        assert not np.allclose(plain[0], path[0], rtol=1e-3)


def test_sgd_by_hand():
    """PyTorch's SGD with Nesterov momentum: v = m v + g, p -= rate (g + m v), g with decay."""
    optimizer = optimizers.make(
        config(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01), 2
    )
    start = {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.full((1,), 2.0)}
    gradients = [{"kernel": jnp.full((1, 1), g), "bias": jnp.full((1,), g)} for g in (1.0, -0.5)]
    path = trajectory(optimizer, start, gradients)
    for name, decay in (("kernel", 0.01), ("bias", 0.0)):
        p, v = 2.0, 0.0
        for gradient, ours in zip((1.0, -0.5), path, strict=True):
            g = gradient + decay * p
            v = 0.9 * v + g
            p -= 0.1 * (g + 0.9 * v)
            assert float(ours[name].ravel()[0]) == pytest.approx(p, rel=1e-6)


def test_adamw_decays_kernels_alone():
    optimizer = optimizers.make(config(name="adamw", learning_rate=0.1, weight_decay=0.5), 1)
    start = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, start)
    (after,) = trajectory(optimizer, start, [zero])
    np.testing.assert_allclose(after["kernel"], 0.95, rtol=1e-6)
    np.testing.assert_array_equal(after["scale"], 1.0)


def test_cosine_with_warmup_by_hand():
    given = config(learning_rate=0.4)
    given.update(schedule="cosine", warmup=0.2)
    rate = optimizers.schedule(given, 100)
    assert float(rate(0)) == 0
    assert float(rate(10)) == pytest.approx(0.2)
    assert float(rate(20)) == pytest.approx(0.4)
    assert float(rate(60)) == pytest.approx(0.2)
    assert float(rate(100)) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"name": "adam"},
            "optimizer.name: expected one of adamw, keras_adam, sgd (did you mean 'adamw'?), got",
        ),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"warmup": 1.0}, "optimizer.warmup: expected a share in [0, 1), got 1.0"),
    ],
)
def test_wrong_field_is_one_clear_error(fields, message):
    given = base().optimizer
    given.update(fields)
    with pytest.raises(InputError) as error:
        optimizers.make(given, 10)
    assert message in str(error.value)


def test_stepped_sgd_is_pytorchs():
    """Yan et al. 2019: Nesterov momentum, decay of every parameter, ×0.1 every so many epochs."""
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    rng = np.random.default_rng(0)
    start = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    gradients = [jax.tree.map(lambda x: rng.normal(size=x.shape), start) for _ in range(12)]
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    sgd = torch.optim.SGD(theirs.values(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2)
    steps = torch.optim.lr_scheduler.StepLR(sgd, 2)  # epochs, of two steps each
    given = config(name="sgd", learning_rate=0.1, weight_decay=1e-2, decay="all", step_epochs=2)
    given.schedule = "step"
    ours = trajectory(
        optimizers.make(given, 12, steps_per_epoch=2),
        jax.tree.map(jnp.asarray, start),
        jax.tree.map(jnp.asarray, gradients),
    )
    for i, gradient in enumerate(gradients):
        for name, value in gradient.items():
            theirs[name].grad = torch.tensor(value)
        sgd.step()
        if i % 2:
            steps.step()
        for name, value in ours[i].items():
            np.testing.assert_allclose(value, theirs[name].detach(), rtol=1e-5, atol=1e-6)


def test_wrong_decay_or_steps_are_one_clear_error():
    with pytest.raises(InputError, match="optimizer.decay: .*did you mean 'kernels'.*got 'kernel'"):
        optimizers.make(config(name="sgd", decay="kernel"), 1)
    with pytest.raises(InputError, match="optimizer.step_epochs: expected at least 1, got 0"):
        optimizers.make(config(name="sgd", step_epochs=0), 1)


def test_rates_by_layer():
    """Sgd without momentum: the step of each layer is its rate."""
    given = config(name="sgd", learning_rate=1.0, momentum=0.0, layer_decay=0.5)
    given.weight_decay, given.rates = 0.0, ConfigDict({"backbone": 0.1, "logits": 3.0})
    layers = ["backbone/conv1", "backbone/conv2", "attention", "logits"]
    start = {
        "backbone": {"conv2": {"kernel": jnp.zeros(2)}, "conv1": {"bn": {"bias": jnp.zeros(2)}}},
        "attention": {"gamma": jnp.zeros(())},
        "logits": {"kernel": jnp.zeros((2, 3))},
    }
    gradient = jax.tree.map(lambda leaf: leaf - 1.0, start)
    (after,) = trajectory(optimizers.make(given, 1, layers=lambda: layers), start, [gradient])
    wanted = {"backbone/conv1/bn/bias": 0.1 / 8, "backbone/conv2/kernel": 0.1 / 4,
              "attention/gamma": 0.5, "logits/kernel": 3.0}  # fmt: skip
    for path, leaf in traverse_util.flatten_dict(after, sep="/").items():
        np.testing.assert_allclose(leaf, wanted[path], rtol=1e-6, err_msg=path)
    given.rates = ConfigDict({"backbon": 0.1})
    with pytest.raises(InputError, match="optimizer.rates: .*did you mean 'backbone'"):
        optimizers.make(given, 1, layers=lambda: layers)


def test_layers_are_those_of_the_forward_pass():
    model = registry.create("torch_efficientnet_lite0", 3, attention="se", attention_at="block3_2")
    names = registry.layers(model, (32, 32, 3))
    blocks = [name.removeprefix("backbone/") for name in names if "block" in name]
    assert blocks == sorted(blocks)
    assert names[:2] == ["backbone/stem", "backbone/block1_1"]
    assert names[-3:] == ["backbone/head", "attention", "backbone/logits"]  # what is new comes last


def test_clipped_gradients_keep_their_direction():
    given = config(name="sgd", learning_rate=1.0, momentum=0.0, clip_norm=1.0)
    given.weight_decay = 0.0
    start = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradients = [{"a": jnp.array([3.0]), "b": jnp.array([-4.0])}]
    (after,) = trajectory(optimizers.make(given, 1), start, gradients)
    np.testing.assert_allclose([after["a"][0], after["b"][0]], [-0.6, 0.8], rtol=1e-6)
