import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxattn.config import base
from jaxattn.data.samplers import SAMPLERS, Draw, Sampler, shuffled
from jaxattn.errors import InputError

LABELS = np.repeat([0, 1, 2], [50, 7, 3])
EXPECTED = {
    ("none", 0): [50, 7, 3],
    ("oversample", 0): [50, 50, 50],
    ("undersample", 0): [3, 3, 3],
    ("equal", 0): [20, 20, 20],
    ("equal", 8): [8, 8, 8],
}


def one_pass(labels, name, seed=0, index=0, **options):
    """The order of one pass of a sampler."""
    return SAMPLERS[name](labels, Draw(seed, index, **options))


def counts(labels, name, **options):
    """How often each class stands in one pass."""
    return np.bincount(labels[one_pass(labels, name, **options)], minlength=labels.max() + 1)


@pytest.mark.parametrize(("name", "per_class"), EXPECTED)
def test_one_pass_by_counting(name, per_class):
    positions = one_pass(LABELS, name, seed=1, per_class=per_class)
    wanted = EXPECTED[name, per_class]
    assert np.bincount(LABELS[positions]).tolist() == wanted
    for label, want in enumerate(wanted):
        used = Counter(positions[LABELS[positions] == label].tolist())
        uses = [used[image] for image in np.flatnonzero(label == LABELS).tolist()]
        assert max(uses) - min(uses) <= 1
        assert sum(uses) == want


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array),
    name=st.sampled_from(sorted(SAMPLERS)),
    seed=st.integers(0, 1000),
)
def test_batches_are_the_passes_one_after_the_other(labels, name, seed):
    sampler = Sampler(np.arange(len(labels)) * 3, labels, 4, seed, name)
    passes = [3 * one_pass(labels, name, seed, index) for index in range(2)]
    steps = 2 * sampler.pass_length // 4
    slots = np.concatenate([sampler.batch(step) for step in range(steps)] or [np.zeros(0, int)])
    np.testing.assert_array_equal(slots, np.concatenate(passes)[: steps * 4])
    # Random access from any step on, in another process, too.
    copied = pickle.loads(pickle.dumps(sampler))
    for step in reversed(range(steps)):
        np.testing.assert_array_equal(copied.batch(step), slots[step * 4 : step * 4 + 4])


def test_orders_differ_by_seed_pass_and_class():
    orders = [one_pass(LABELS, "none", seed, index) for seed in (0, 1) for index in (0, 1)]
    assert len({order.tobytes() for order in orders}) == 4
    even = np.repeat([0, 1], 30)
    first = one_pass(even, "undersample", 0, 0)
    positions = [np.flatnonzero(first[even[first] == label]) for label in (0, 1)]
    assert positions[0].tobytes() != positions[1].tobytes()


def test_shuffle_is_uniform():
    """Each of 4 elements comes to each of 4 places about as often (chi-squared, 9 degrees)."""
    orders = np.stack([shuffled(4, seed) for seed in range(4000)])
    table = np.stack([(orders == element).sum(0) for element in range(4)])
    assert ((table - 1000) ** 2 / 1000).sum() < 27.9  # p = .001


@pytest.mark.parametrize(("classes", "batch"), [(7, 5), (7, 45), (3, 4), (3, 12)])
def test_balanced_batches_by_counting(classes, batch):
    """Each batch holds every class equally often or once more; used up, a class is shuffled."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(classes), rng.integers(2, 30, classes)))
    sampler = Sampler(np.arange(len(labels)) + 100, labels, batch, 3, "balanced_batches")
    assert sampler.pass_length == len(labels)
    slots = np.concatenate([sampler.batch(step) for step in range(80)]) - 100
    for held in labels[slots].reshape(80, batch):
        assert set(np.bincount(held, minlength=classes)) <= {batch // classes, -(-batch // classes)}
    total = np.bincount(labels[slots])
    assert total.max() - total.min() <= 1
    for label in range(classes):
        members = np.flatnonzero(labels == label).tolist()
        used = slots[labels[slots] == label].tolist()
        rounds = [used[i : i + len(members)] for i in range(0, len(used), len(members))]
        assert all(sorted(each) == members for each in rounds[:-1])
        assert len(members) < 6 or len({tuple(each) for each in rounds[:-1]}) > 1


def test_equal_uses_every_image_over_the_passes():
    used = {int(i) for p in range(40) for i in one_pass(LABELS, "equal", 0, p, per_class=5)}
    assert used == set(range(60))


def test_classes_without_images_are_left_out():
    assert counts(np.array([0, 2, 2]), "oversample").tolist() == [2, 0, 2]
    assert counts(np.array([0, 2, 2]), "undersample").tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "oversampel"}, "did you mean 'oversample'"),
        ({"per_class": -1, "name": "equal"}, "sampler.per_class: expected a number of at least 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        (
            {"rows": np.arange(0), "labels": np.arange(0)},
            "sampler: expected at least one training image",
        ),
    ],
)
def test_wrong_argument_is_one_clear_error(arguments, message):
    given = {"rows": np.arange(60), "labels": LABELS, "batch_size": 4} | arguments
    with pytest.raises(InputError) as error:
        Sampler(**given).batch(0)
    assert message in str(error.value)


def test_factors_and_whole_batches_are_yans(make_dataset):
    """ISIC 2017: melanomas four times make 3,122 slots, 97 whole batches of 32, of each pass."""
    labels = np.repeat([0, 1], [1626, 374])
    dataset = make_dataset(labels, names=("rest", "melanoma"))
    config = base()
    config.batch_size = 32
    config.sampler.update(factors={"melanoma": 4.0}, drop_last=True)
    sampler = Sampler.make(config, dataset, np.arange(2000))
    assert counts(labels, "none", factors=sampler.factors).tolist() == [1626, 4 * 374]
    assert (sampler.pass_length, sampler.steps_per_pass) == (97 * 32, 97)
    used = Counter(sampler[slot] for slot in range(sampler.pass_length))
    assert max(used[row] for row in range(1626)) == 1
    assert max(used[row] for row in range(1626, 2000)) == 4
    assert sum(used[row] for row in range(1626, 2000)) > 4 * 374 - 18
    # Other images are left out of the next pass, which starts with a batch.
    left_out = [
        {row for row in range(1626) if row not in set(sampler.rows[sampler.order(i)[: 97 * 32]])}
        for i in range(2)
    ]
    assert left_out[0] != left_out[1]
    with pytest.raises(InputError, match="sampler: expected a pass of at least 32 images, got 9"):
        Sampler(np.arange(9), np.zeros(9, int), 32, drop_last=True)
    for factors, message in (
        ({"mel": 4.0}, "sampler.factors: expected one of melanoma, rest"),
        ({"rest": -1.0}, "sampler.factors.rest: expected a number of at least 0, got -1.0"),
    ):
        config.sampler.factors = ConfigDict(factors)
        with pytest.raises(InputError, match=message):
            Sampler.make(config, dataset, np.arange(2000))
