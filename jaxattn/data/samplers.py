"""Samplers: which image goes into which slot of which batch, as integers.

The order is a pure function of the labels, the seed and the number of the pass, and is known before
any pixel is read. A *pass* goes once through the (balanced) training images, in a new order. Passes
follow each other without a gap: a batch may hold the end of one and the start of the next, and no
image is dropped. An *epoch* is a number of steps that the config sets: Datta et al. 2021 use 919
batches, about a quarter of their list.

To add a sampler, register a function that returns the order of one pass::

    @SAMPLERS.register("mine")
    def mine(labels, draw):
        return shuffled(len(labels), draw.seed, draw.index)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from jaxattn.data.dataset import Dataset
from jaxattn.errors import invalid, unknown
from jaxattn.registry import Registry


@dataclasses.dataclass(frozen=True)
class Draw:
    """What a pass depends on in addition to the labels.

    Attributes:
        seed: Seed of every order.
        index: Number of the pass.
        per_class: ``equal``: images of each class in a pass; 0 for the mean class size.
        factors: Multiplies the count of each class, by label; () for 1.
        options: ``config.sampler.options``, for samplers registered elsewhere.
    """

    seed: int
    index: int
    per_class: int = 0
    factors: tuple[float, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


#: Samplers by name: ``(labels, draw) -> positions into labels``. All passes are equally long.
SAMPLERS: Registry[Callable[[Int[np.ndarray, " n"], Draw], Int[np.ndarray, " slots"]]] = Registry(
    "sampler.name"
)


@SAMPLERS.register("none")
def natural(labels: Int[np.ndarray, " n"], draw: Draw) -> Int[np.ndarray, " slots"]:
    """Every image once."""
    return _by_count(labels, np.bincount(labels), draw)


@SAMPLERS.register("oversample")
def oversample(labels: Int[np.ndarray, " n"], draw: Draw) -> Int[np.ndarray, " slots"]:
    """Every class as often as the largest."""
    return _by_count(labels, int(_class_sizes(labels).max()), draw)


@SAMPLERS.register("undersample")
def undersample(labels: Int[np.ndarray, " n"], draw: Draw) -> Int[np.ndarray, " slots"]:
    """Every class as often as the smallest."""
    return _by_count(labels, int(_class_sizes(labels).min()), draw)


@SAMPLERS.register("equal")
def equal(labels: Int[np.ndarray, " n"], draw: Draw) -> Int[np.ndarray, " slots"]:
    """Every class ``per_class`` times: over- and undersampling (Datta et al. 2021, section 3.1)."""
    return _by_count(labels, draw.per_class or round(_class_sizes(labels).mean()), draw)


@SAMPLERS.register("balanced_batches")
def balanced_batches(labels: Int[np.ndarray, " n"], draw: Draw) -> Int[np.ndarray, " slots"]:
    """The classes take turns, slot by slot, across passes (Gessert et al. 2019, section II-F).

    Each batch holds every class equally often, or once more. A pass has as many slots as there are
    images. The images of a class are reshuffled whenever all of them have been used, wherever a
    pass ends.
    """
    classes = np.unique(labels)
    turns = np.bincount(classes[np.arange(len(labels)) % len(classes)])
    length = int(_scaled(turns, draw).sum())
    slots = np.arange(draw.index * length, (draw.index + 1) * length)
    turn, whose = np.divmod(slots, len(classes))
    positions = np.empty(length, np.int64)
    for i, label in enumerate(classes.tolist()):
        members, own = np.flatnonzero(labels == label), np.flatnonzero(whose == i)
        cycle, place = np.divmod(turn[own], len(members))
        for c in np.unique(cycle).tolist():
            order = members[shuffled(len(members), draw.seed, c, label + 1)]
            positions[own[cycle == c]] = order[place[cycle == c]]
    return positions


def _class_sizes(labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " classes"]:
    """Images of each class that has any."""
    return np.unique(labels, return_counts=True)[1]


def _scaled(counts: np.ndarray, draw: Draw) -> Int[np.ndarray, " classes"]:
    """The count of each class times its factor, rounded."""
    if not draw.factors:
        return counts
    return np.rint(counts * np.array(draw.factors[: len(counts)])).astype(int)


def _by_count(
    labels: Int[np.ndarray, " n"], wanted: np.ndarray | int, draw: Draw
) -> Int[np.ndarray, " slots"]:
    """So many images of each class, times its factor, in random order.

    An image is used at most once more than another of its class; each pass draws which ones are.
    """
    wanted = _scaled(np.broadcast_to(wanted, labels.max() + 1), draw)
    chosen = []
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        # + 1: a SeedSequence ignores a trailing 0.
        members = members[shuffled(len(members), draw.seed, draw.index, label + 1)]
        chosen.append(np.resize(members, wanted[label]))
    positions = np.concatenate(chosen)
    return positions[shuffled(len(positions), draw.seed, draw.index)]


def shuffled(count: int, *seeds: int) -> Int[np.ndarray, " count"]:
    """A permutation of ``range(count)``, a pure function of the seeds.

    It sorts the raw bits of a bit generator: NumPy guarantees those across versions, but not the
    result of ``permutation``.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seeds)).random_raw(count)
    return np.argsort(bits, kind="stable")


@dataclasses.dataclass(eq=False)
class Sampler:
    """An endless sequence of batches of rows, with random access.

    Attributes:
        rows: Rows of the data set to draw from, int ``(n,)``.
        labels: Their classes, int ``(n,)``.
        batch_size: Slots of a batch, over all devices and hosts.
        seed: Seed of every order.
        name: One of ``SAMPLERS``.
        per_class: See `Draw`.
        factors: See `Draw`.
        drop_last: Whether a pass leaves out the images that do not fill its last batch, so that
            every pass starts a batch (PyTorch's ``drop_last``).
        options: See `Draw`.

    Raises:
        InputError: An argument is wrong, or a pass does not fill a batch.
    """

    rows: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    batch_size: int
    seed: int = 0
    name: str = "none"
    per_class: int = 0
    factors: tuple[float, ...] = ()
    drop_last: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Number and order of the last pass used. One is kept, so that memory stays bounded.
    _last: tuple[int, np.ndarray] | None = dataclasses.field(default=None, init=False, repr=False)

    @classmethod
    def make(cls, config: ConfigDict, dataset: Dataset, rows: Int[np.ndarray, " n"]) -> "Sampler":
        """The sampler of ``config.sampler`` over some rows of a data set.

        Raises:
            InputError: A field is wrong, or there are not enough images.
        """
        fields = config.sampler.to_dict()
        factors = fields.pop("factors")
        for name, factor in factors.items():
            if name not in dataset.class_names:
                raise unknown("sampler.factors", name, dataset.class_names)
            if factor < 0:
                raise invalid(f"sampler.factors.{name}", "a number of at least 0", factor)
        fields["factors"] = tuple(float(factors.get(name, 1)) for name in dataset.class_names)
        return cls(rows, dataset.labels[rows], config.batch_size, config.seed, **fields)

    def __post_init__(self):
        if not len(self.rows):
            raise invalid("sampler", "at least one training image", "none")
        if self.batch_size < 1:
            raise invalid("batch_size", "at least 1", self.batch_size)
        if self.per_class < 0:
            raise invalid("sampler.per_class", "a number of at least 0", self.per_class)
        if not self.pass_length:
            images = len(self.order(0))
            raise invalid("sampler", f"a pass of at least {self.batch_size} images", images)

    @functools.cached_property
    def pass_length(self) -> int:
        """Slots of a pass."""
        total = len(self.order(0))
        return total - total % self.batch_size if self.drop_last else total

    @property
    def steps_per_pass(self) -> int:
        """Batches that cover a pass."""
        return -(-self.pass_length // self.batch_size)

    def order(self, index: int) -> Int[np.ndarray, " slots"]:
        """The order of pass ``index``, before ``drop_last``: positions into ``labels``."""
        last = self._last
        if last is None or last[0] != index:
            draw = Draw(self.seed, index, self.per_class, self.factors, self.options)
            self._last = last = index, SAMPLERS[self.name](self.labels, draw)
        return last[1]

    def __getitem__(self, slot: int) -> int:
        """The row in a slot; slots are numbered through all batches and passes."""
        index, place = divmod(slot, self.pass_length)
        return int(self.rows[self.order(index)[place]])

    def batch(self, step: int) -> Int[np.ndarray, " batch"]:
        """The rows of a step's batch, int64 ``(batch_size,)``."""
        first = step * self.batch_size
        return np.array([self[slot] for slot in range(first, first + self.batch_size)])
