"""The fusion of features and metadata, against NumPy and against counts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.errors import InputError
from jaxattn.models import registry
from jaxattn.models.metadata import Fusion, encode
from tests import runs

NAN = float("nan")
SIZES = (0, 2, 3)
OPTIONS = {"sizes": SIZES, "units": 6, "joint_units": 5}
KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


def test_inputs_are_one_hot_with_an_input_for_missing_values():
    found = encode(jnp.array([[-1.5, 1.0, 2.0], [NAN, NAN, 0.0], [0.25, 0.0, NAN]]), SIZES)
    wanted = [
        # age, missing; female, male, missing; three sites, missing
        [-1.5, 0, 0, 1, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 1, 0, 0, 0],
        [0.25, 0, 1, 0, 0, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(found, wanted)


def draw(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.1, 1, leaf.shape), jnp.float32), shapes
    )


def by_hand(variables, features, inputs):
    """Dense, batch norm by the running statistics and a ReLU, three times."""

    def layer(x, name):
        dense, norm = variables["params"][name], variables["params"][f"{name}_norm"]
        kept = variables["batch_stats"][f"{name}_norm"]
        x = (x @ dense["kernel"] - kept["mean"]) / np.sqrt(kept["var"] + 1e-5)
        return np.maximum(x * norm["scale"] + norm["bias"], 0)

    x = layer(layer(inputs, "dense1"), "dense2")
    return layer(np.concatenate([features, x], axis=-1), "joint")


def test_the_layers_are_those_of_the_paper():
    metadata = jnp.array([[-1.5, 1.0, 2.0], [NAN, NAN, 0.0]])
    features = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4)), jnp.float32)
    fusion = Fusion(**OPTIONS)
    shapes = jax.eval_shape(lambda: fusion.init(KEYS, features, metadata, False))
    variables = draw(shapes)
    given = (variables, features, encode(metadata, SIZES))
    wanted = by_hand(*jax.tree.map(np.asarray, given))
    found = fusion.apply(variables, features, metadata, False)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    sizes = {
        name: leaf["kernel"].shape
        for name, leaf in shapes["params"].items()
        if leaf.keys() == {"kernel"}
    }
    assert sizes == {"dense1": (9, 6), "dense2": (6, 6), "joint": (10, 5)}


def test_the_published_sizes_are_the_defaults():
    shapes = jax.eval_shape(
        lambda: Fusion(SIZES).init(KEYS, jnp.zeros((1, 1280)), jnp.zeros((1, 3)), False)
    )
    kernels = [shapes["params"][name]["kernel"].shape for name in ("dense1", "dense2", "joint")]
    assert kernels == [(9, 256), (256, 256), (1280 + 256, 1024)]
    assert (Fusion.hide, Fusion.dropout_rate) == (0.1, 0.4)


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4)])
def test_crops_see_the_metadata_of_their_image(shape):
    """In a row, the first three are of the first image; or each image has an axis of crops."""
    metadata = jnp.array([[1.0, 0, 0], [-1.0, 1, 2]])
    features = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)
    fusion = Fusion(**OPTIONS)
    variables = draw(jax.eval_shape(lambda: fusion.init(KEYS, features, metadata, False)))
    found = fusion.apply(variables, features, metadata, False).reshape(6, -1)
    for i, row in enumerate(features.reshape(6, 4)):
        alone = fusion.apply(variables, row[None], metadata[i // 3][None], False)
        np.testing.assert_allclose(found[i], alone[0], rtol=1e-5)


def test_training_hides_a_share_of_the_values():
    """A network of one unit per value, without dropout: what is hidden is read off its input."""
    count = 4000
    fusion = Fusion((0, 2), hide=0.25, dropout_rate=0.0)
    metadata = jnp.tile(jnp.array([[2.0, 1.0]]), (count, 1))
    features = jnp.zeros((count, 1))
    variables = fusion.init(KEYS, features, metadata, False)
    seen = []

    def note(call, args, kwargs, context):
        if context.module.name == "dense1" and context.method_name == "__call__":
            seen.append(np.asarray(args[0]))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        fusion.apply(variables, features, metadata, True, rngs=KEYS, mutable=["batch_stats"])
        fusion.apply(variables, features, metadata, False)
    trained, evaluated = seen
    np.testing.assert_array_equal(evaluated, np.tile([[2, 0, 0, 1, 0]], (count, 1)))
    np.testing.assert_array_equal(trained[:, 0], np.where(trained[:, 1], 0, 2))
    np.testing.assert_array_equal(trained[:, 3], 1 - trained[:, 4])
    hidden = trained[:, [1, 4]] == 1
    assert abs(hidden.mean(0) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / count)
    both = hidden.all(1).mean()
    assert abs(both - 0.25**2) < 5 * np.sqrt(0.0625 * 0.9375 / count)  # drawn one by one


MODELS = {
    "attention_cnn": (32, {"width": 4, "blocks": (1, 1, 1), "heads": 2}),
    "densenet_small": (64, {"attention": "soft", "attention_at": "conv3_block2"}),
    "torch_efficientnet_lite0": (32, {}),
    "attnmelcnn": (64, {}),
    "koefler_cnn_sa": (100, {}),
    "resnet50_sa": (64, {}),
    "gessert2019": (64, {"backbone": "densenet_small"}),
}


def described(module, size):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda images: module.init(KEYS, images, train=False), images)


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize("name", MODELS)
def test_any_classifier_takes_metadata_under_the_names_that_it_has(name):
    size, options = MODELS[name]
    plain = described(registry.create(name, 3, **options), size)
    fused = described(registry.create(name, 3, metadata=OPTIONS, **options), size)
    names = [
        {
            jax.tree_util.keystr(path): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(each)
        }
        for each in (plain, fused)
    ]
    changed = {path for path in names[0] if names[0][path] != names[1][path]}
    assert len(changed) == 1
    (kernel,) = changed
    assert kernel.endswith("['logits']['kernel']")
    assert names[1][kernel] == (5, 3)
    own = names[1].keys() - names[0].keys()
    assert all("['metadata']" in path for path in own)
    joint = names[1]["['params']['metadata']['joint']['kernel']"]
    assert joint == (names[0][kernel][0] + 6, 5)


@pytest.fixture(scope="module")
def small():
    size, options = MODELS["attention_cnn"]
    module = registry.create("attention_cnn", 3, metadata=OPTIONS, **options)
    variables = jax.tree.map(jnp.asarray, runs.variables(module, (size, size, 3)))
    return module, variables, (size, size, 3)


@pytest.mark.usefixtures("mixed_dtypes")
def test_without_metadata_all_values_are_missing(small):
    module, variables, shape = small
    images = jnp.asarray(np.random.default_rng(0).random((2, *shape)), jnp.float32)
    none, maps = module.apply(variables, images, train=False)
    missing, _ = module.apply(variables, images, jnp.full((2, 3), NAN), train=False)
    np.testing.assert_array_equal(none, missing)
    assert maps["soft_attention"].shape == (2, 2, 4, 4)
    assert np.isfinite(none).all()


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize("field", range(3))
def test_each_field_changes_the_logits_and_only_of_its_image(small, field):
    module, variables, shape = small
    images = jnp.asarray(np.random.default_rng(0).random((2, *shape)), jnp.float32)
    metadata = jnp.array([[0.5, 1.0, 2.0], [0.5, 1.0, 2.0]])
    before, _ = module.apply(variables, images, metadata, train=False)
    for value in (0.0, NAN):
        after, _ = module.apply(variables, images, metadata.at[0, field].set(value), train=False)
        np.testing.assert_allclose(after[1], before[1], rtol=1e-5)
        assert abs(after[0] - before[0]).max() > 1e-3


def test_a_model_of_images_alone_stays_what_it_was():
    name = "attention_cnn"
    assert registry.create(name, 3, metadata=None) == registry.create(name, 3)


def test_a_classifier_without_logits_is_refused():
    module = registry.create("tiny", 3, metadata=OPTIONS)
    with pytest.raises(InputError, match=r"metadata.fields: .*'logits', got Tiny, which has none"):
        module.init(KEYS, jnp.zeros((1, 32, 32, 3)), train=False)


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize("name", ["attention_cnn", "densenet_small"])
def test_layers_end_with_the_logits(name):
    size, options = MODELS[name]
    module = registry.create(name, 3, metadata=OPTIONS, **options)
    *_, before, last = registry.layers(module, (size, size, 3))
    assert before == "metadata"
    assert last.endswith("logits")
