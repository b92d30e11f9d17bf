"""The comparison with Keras finds differences, and only these."""

import jax
import numpy as np
import optax
import pytest

keras = pytest.importorskip("keras")
if keras.backend.backend() != "jax":
    pytest.skip(f"Keras runs on {keras.backend.backend()}, not on JAX", allow_module_level=True)
parity = pytest.importorskip("references.keras_parity")

from references import keras_models, keras_ties, keras_weights  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
#: The network that compiles fastest, at the smallest size it accepts.
NAME, SIZE = "koefler_cnn_sa", 75
BOUNDS = parity.BOUNDS


class Drawn:
    """The model in Keras and in Flax, with weights away from kinks and ties, and our results."""

    def __init__(self):
        self.pair = parity.make_pair(NAME, SIZE)
        self.images = self.pair.images(2, seed=0)
        keras_weights.draw(self.pair.keras, self.images, 0, away_from_kinks=True)
        keras_ties.break_ties(self.pair.keras, self.images, 0)
        weighting = np.random.default_rng(0).normal(size=7).astype(np.float32)
        self.got = parity.our_side(self.pair, weighting)(self.images)
        self.keras = parity.keras_side(self.pair, weighting, list(self.got.outputs))

    def compared(self):
        """The differences with the Keras model's current weights."""
        found = parity.compared(self.got, self.keras(self.images))
        return {what: value for what, (value, _) in found.items()}


@pytest.fixture(scope="module")
def drawn():
    return Drawn()


def test_same_weights_pass(drawn):
    assert len(drawn.got.outputs) == 16
    found = drawn.compared()
    assert {what for what in found if found[what] <= BOUNDS[what]} == set(found)
    assert len(found) == 3


def convolutions(model):
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


def one_kernel_element(model):
    layer = convolutions(model)[2]
    kernel = np.array(layer.kernel)
    kernel[0, 0, 0, 0] += kernel.std()
    return layer.kernel, kernel


def mean(model):
    variable = model.get_layer("conv4").moving_mean
    return variable, np.zeros(variable.shape)


def variance(model):
    variable = model.get_layer("conv4").moving_variance
    return variable, np.ones(variable.shape)


def bias_of_logits(model):
    variable = model.get_layer("logits").bias
    return variable, np.zeros(variable.shape)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (one_kernel_element, {"logits", "endpoints", "gradients"}),
        (mean, {"logits", "endpoints", "gradients"}),
        (variance, {"logits", "endpoints", "gradients"}),
        (bias_of_logits, {"logits", "endpoints"}),
    ],
)
def test_a_difference_is_found(drawn, change, wanted):
    """One array of the Keras model is changed, and not ours."""
    variable, value = change(drawn.pair.keras)
    before = np.array(variable)
    variable.assign(value)
    try:
        found = drawn.compared()
    finally:
        variable.assign(before)
    assert {what for what, value in found.items() if value > BOUNDS[what]} >= wanted


def test_no_relu_is_near_its_kink(drawn):
    """The output of a convolution's ReLU is 0, or well above."""
    convs = convolutions(drawn.pair.keras)
    outputs = keras.Model(drawn.pair.keras.input, [each.output for each in convs])(drawn.images)
    assert len(outputs) == 6
    for output in map(np.asarray, outputs):
        assert not ((output > 0) & (output < 0.05)).any()
        assert 0 < (output == 0).all((0, 1, 2)).sum() < output.shape[-1]


def test_no_channel_of_a_max_pool_has_a_tie(drawn):
    """The pools' inputs, counted window by window with NumPy."""
    model = drawn.pair.keras
    pools = [layer for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    pools = [pool for pool in pools if pool.pool_size == (3, 3) and pool.padding == "valid"]
    inputs = keras.Model(model.input, [pool.input for pool in pools])(drawn.images)
    assert len(pools) == 5
    for pool, x in zip(pools, map(np.asarray, inputs), strict=True):
        x = x[..., :512]  # those after are weighted by attention, and near 0
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
        windows = windows[:, :: pool.strides[0], :: pool.strides[1]]
        second, first = np.sort(windows.reshape(*windows.shape[:4], 9))[..., -2:].transpose(
            4, 0, 1, 2, 3
        )
        is_on = x.max((0, 1, 2)) > x.min((0, 1, 2))
        assert is_on.any()
        assert ((first - second)[..., is_on] > 4e-6 * np.abs(x).max()).all()


@pytest.mark.parametrize("known", [True, False])
def test_a_channel_that_is_tied_whatever_its_kernel_is_switched_off(known):
    """Its kernel is so small that no perturbation of it separates the values."""
    keras.utils.clear_session()
    images = keras.layers.Input((8, 8, 3))
    convolution = keras.layers.Conv2D(8, 3, activation="relu" if known else None)
    x = keras.layers.BatchNormalization()(convolution(images))
    x = x if known else keras.layers.ReLU()(x)
    model = keras.Model(images, keras.layers.MaxPooling2D(2)(x))
    given = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    keras_weights.draw(model, given, 0, away_from_kinks=True)
    kernel = np.array(convolution.kernel)
    kernel[..., 5] *= 1e-6
    convolution.kernel.assign(kernel)
    keras_ties.break_ties(model, given, 0)
    out = np.asarray(keras.Model(model.input, x)(given))
    assert np.ptp(out[..., 5]) == 0
    assert np.ptp(out, (0, 1, 2)).astype(bool).sum() >= 4


def test_relus_are_moved_back_from_their_kinks():
    """After another first kernel, as where ties are broken, sixteen layers have other values."""
    keras.utils.clear_session()
    images = keras.layers.Input((16, 16, 3))
    first = keras.layers.Conv2D(32, 3, activation="relu")
    x, inputs = first(images), []
    for _ in range(16):
        inputs.append(keras.layers.BatchNormalization()(keras.layers.Conv2D(32, 1)(x)))
        x = keras.layers.ReLU()(inputs[-1])
    model, to_relus = keras.Model(images, x), keras.Model(images, inputs)
    rng = np.random.default_rng(0)
    given = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)

    def nearest():
        return min(float(np.abs(values).min()) for values in to_relus(given))

    keras_weights.draw(model, given, 0, away_from_kinks=True)
    assert nearest() > 0.05
    assert not keras_weights.move_back(model, given)
    first.kernel.assign(first.kernel + 0.2 * rng.normal(size=first.kernel.shape))
    assert nearest() < 0.01
    assert keras_weights.move_back(model, given)
    assert nearest() > 0.05


@pytest.mark.parametrize("name", keras_models.APPLICATIONS)
def test_endpoints_are_found_in_networks_of_keras(name):
    """The layer of each endpoint ends where ours does: at its last batch norm, ReLU or pool."""
    keras.utils.clear_session()
    with keras.StatelessScope(initialize_variables=False):
        pair = parity.make_pair(name)
    shapes = jax.eval_shape(
        lambda images: parity.our_outputs(pair.module, *_init(pair.module, images)),
        jax.ShapeDtypeStruct((1, pair.size, pair.size, 3), np.float32),
    )
    by_tensor = {
        id(out): each for each in pair.keras.layers for out in keras.tree.flatten(each.output)
    }
    for endpoint, ours in shapes.items():
        tensor = parity.keras_tensor(pair, endpoint)
        assert tensor.shape[1:] == ours.shape[1:], endpoint
        with_bias = getattr(by_tensor[id(tensor)], "use_bias", True)
        assert with_bias, f"{endpoint}: a convolution before its batch norm"


def _init(module, images):
    return module.init(jax.random.key(0), images, train=False), images


class Trained:
    """Keras' training, and ours with a mutation."""

    steps = 3

    def __init__(self):
        self.pair = parity.make_pair(NAME, SIZE, dropout=0.0)
        self.batch = self.pair.images(4, 0), np.arange(4) % 3
        keras_weights.draw(self.pair.keras, self.batch[0], 0, away_from_kinks=True, training=True)
        values = {v.path: v.value for v in self.pair.keras.variables}
        self.start = self.pair.converted(values)
        self.keras = parity.keras_training(self.pair, *self.batch, self.steps)

    def ours(self):
        ours = parity.our_training(self.pair, self.start, *self.batch, self.steps)
        return parity.compared_training(ours, self.keras, self.start["batch_stats"])


@pytest.fixture(scope="module")
def trained():
    return Trained()


def test_training_from_the_same_weights_gives_the_same_movements(trained):
    """Much closer than the bounds, and all mutations would be found."""
    row = trained.ours()
    found = {what: value["difference"] for what, value in row["differences"].items()}
    assert set(found) == {"losses", "statistics", "movements", "rate"}
    assert max(found.values()) < 1e-4  # the bound is wider for ties, which this one has none of
    assert row["parameters"] == 32
    assert row["moved"] == 32 - 6  # the biases of six convolutions before batch norm
    assert parity.problems(row) == []
    mutations = row["mutations"]
    assert 0.25 < mutations.pop("gradient x 1.5") < 0.5  # less than half, as Adam divides by it
    wanted = {"untrained": 1, "rate + 0.1%": 1e-3, "negated": 2}
    assert mutations == pytest.approx(wanted, rel=0.01)


def scaled(part, factor):
    """Scales the gradients of arrays whose path has this part."""

    def scale(path, gradient):
        within = part in jax.tree_util.keystr(path, simple=True, separator="/")
        return gradient * (factor if within else 1)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


@pytest.mark.parametrize(
    "mutation", [("conv2/conv", 0), ("conv4/conv", 1.5), ("fc1", -1), ("rate", 1.001)]
)
def test_mutated_training_is_found(trained, mutation, monkeypatch):
    part, factor = mutation
    if part == "rate":
        monkeypatch.setattr(parity, "RATE", parity.RATE * factor)
    else:
        make = parity.optimizers.make
        monkeypatch.setattr(
            parity.optimizers, "make", lambda *args: optax.chain(scaled(part, factor), make(*args))
        )
    row = trained.ours()
    kind = "rate" if part == "rate" else "movements"
    assert f"exceeds the bound of {kind}" in parity.problems(row)
    if part != "rate":
        assert part in row["differences"]["movements"]["at"]


def test_problems_of_a_row():
    def found(**differences):
        return {what: {"difference": value} for what, value in differences.items()}

    away = found(logits=1e-6, endpoints=2e-4, gradients=1e-6)
    ordinary = found(logits=float("nan"), endpoints=1e-6, gradients=0.1)  # gradients: not judged
    row = {"differences": {parity.ORDINARY: ordinary, parity.AWAY: away}}
    assert parity.problems(row) == [
        "exceeds the bound of logits, ordinary",
        "exceeds the bound of endpoints, away from kinks",
    ]
    assert parity.problems({"failed": "no memory"}) == ["failed: no memory"]
    row = {"differences": found(movements=1e-6), "mutations": {"negated": 2, "untrained": 0.01}}
    assert parity.problems(row) == ["would not find untrained"]
