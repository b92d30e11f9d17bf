import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import linen as nn

from jaxattn import steps
from jaxattn.data.augment import Augmentation
from jaxattn.data.crops import Crops
from jaxattn.data.mixing import Mixing, mean_of_labels
from jaxattn.data.preprocess import make_training_preprocess
from jaxattn.losses import CrossEntropy, Loss
from jaxattn.runtime import devices
from jaxattn.state import create


def batch_of(count=6, height=12, width=8):
    """Images of random numbers, the first channel of which is their mask."""
    rng = np.random.default_rng(0)
    images = rng.random((count, height, width, 3), np.float32)
    images[..., 0] = images[..., 0] > 0.5
    batch = {"label": jnp.arange(count), "row": 10 * jnp.arange(count)}
    batch |= {"mask": jnp.asarray(images[..., 0]), "has_mask": jnp.arange(count) != 2}
    return images, batch


def mix(mixing, seed, images, batch):
    return jax.jit(mixing)(jax.random.key(seed), jnp.asarray(images), batch)


def shares(mixing, count, *shape):
    """Those that many keys give."""
    images, batch = batch_of(3, *shape)
    one = jax.vmap(lambda key: mixing(key, jnp.asarray(images), batch)[1]["share"][0])
    return np.asarray(jax.jit(one)(jax.random.split(jax.random.key(0), count)))


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.4), Mixing(cutmix=1.0)])
def test_images_masks_and_labels_are_mixed_alike(mixing):
    images, batch = batch_of()
    mixed, after = mix(mixing, 3, images, batch)
    other = np.asarray(after["other_label"])
    assert sorted(other) == list(range(6))
    assert (other != np.arange(6)).any()
    np.testing.assert_array_equal(after["other_row"], 10 * other)
    np.testing.assert_array_equal(after["label"], np.arange(6))
    share = float(after["share"][0])
    assert 0 < share < 1
    if mixing.mixup:
        wanted = share * images + (1 - share) * images[other]
    else:
        own = (np.asarray(mixed) == images).all((0, 3))  # one box for the batch
        assert share == pytest.approx(own.mean())
        rows, columns = (np.flatnonzero(~own.all(axis)) for axis in (1, 0))
        assert not own[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].any()
        assert len(rows) * len(columns) == (~own).sum()
        wanted = np.where(own[..., None], images, images[other])
    np.testing.assert_allclose(mixed, wanted, atol=1e-6)
    np.testing.assert_allclose(after["mask"], wanted[..., 0], atol=1e-6)
    np.testing.assert_array_equal(after["has_mask"], (np.arange(6) != 2) & (other != 2))


def test_the_share_of_mixup_is_of_a_beta_distribution():
    share = shares(Mixing(mixup=0.4), 2000, 2, 2)
    assert scipy.stats.kstest(share, scipy.stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_boxes_are_those_of_the_paper():
    """Section 3.1: a box of √(1 - λ) of each side around a uniform place, cut off at the border."""
    height, width, rng, theirs = 40, 24, np.random.default_rng(0), []
    for _ in range(4000):
        ratio = np.sqrt(1 - rng.beta(0.7, 0.7))
        sides = []
        for length in (height, width):
            half, centre = length * ratio / 2, rng.uniform(0, length)
            sides.append(min(length, centre + half) - max(0, centre - half))
        theirs.append(1 - np.prod(sides) / (height * width))
    ours = shares(Mixing(cutmix=0.7), 4000, height, width)
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.03)  # whole pixels are less
    wanted = np.quantile(theirs, [0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(np.quantile(ours, [0.1, 0.25, 0.5, 0.75, 0.9]), wanted, atol=0.06)


def test_both_are_taken_equally_often():
    """Boxes leave a whole number of sixteenths."""
    sixteenths = 16 * shares(Mixing(mixup=1.0, cutmix=0.5), 2000, 4, 4)
    assert (np.round(sixteenths) == sixteenths).mean() == pytest.approx(0.5, abs=0.05)


def test_nothing_to_mix_changes_nothing():
    images, batch = batch_of()
    images = jnp.asarray(images)
    assert Mixing()(jax.random.key(0), images, batch) == (images, batch)
    assert mean_of_labels(lambda given: given, batch) is batch


class Linear(nn.Module):
    """Softmax regression on the mean pixel."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        return nn.Dense(3, name="logits")(images.mean((1, 2))), {}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_mixed_step_by_hand(accumulate):
    """Cross-entropy with class weights and label smoothing, and weights by row, of either label."""
    weights, factors = np.array([1.0, 5.0, 2.0]), np.arange(1.0, 9.0)
    cross_entropy = CrossEntropy(np.float32(weights), 0.1, row_factors=np.float32(factors))
    loss = Loss(lambda logits, batch: cross_entropy(logits, batch["label"], batch["row"]))
    optimizer, mixing = optax.sgd(0.5), Mixing(mixup=1.0)
    step = steps.make_train_step(
        Linear(),
        optimizer,
        make_training_preprocess(Augmentation(), Crops(), "unit"),
        loss,
        devices.mesh(),
        seed=7,
        mixing=mixing,
        accumulate=accumulate,
    )
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
    batch = {"row": np.arange(8)[::-1], "label": np.arange(8) % 3, "image": images}
    state = create(jax.random.key(0), Linear(), optimizer, (4, 4, 3))
    kernel = np.array(state.params["logits"]["kernel"])
    key = steps.mixing_key(jax.random.fold_in(jax.random.key(7), 0))
    facts = {name: jnp.asarray(batch[name]) for name in ("row", "label")}
    _, drawn = jax.jit(mixing)(key, jnp.zeros((8, 4, 4, 3)), facts)
    order, share = 7 - np.asarray(drawn["other_row"]), float(drawn["share"][0])
    state, metrics = step(state, {}, batch)

    x = (share * images / 255 + (1 - share) * images[order] / 255).mean((1, 2))
    p = np.exp(x @ kernel)
    p /= p.sum(1, keepdims=True)
    total, accuracy, gradient = 0.0, 0.0, np.zeros((8, 3))
    for part, who in ((share, np.arange(8)), (1 - share, order)):
        label, row = batch["label"][who], batch["row"][who]
        target = 0.9 * np.eye(3)[label] + 0.1 / 3
        weight = (part * weights[label] * factors[row] / 8)[:, None]
        total -= (weight * target * np.log(p)).sum()
        accuracy += part * (p.argmax(1) == label).mean()
        gradient += weight * (p - target)
    assert float(metrics["loss"]) == pytest.approx(total, rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(accuracy)
    after = state.params["logits"]["kernel"]
    np.testing.assert_allclose(after, kernel - 0.5 * x.T @ gradient, atol=1e-5)
