"""Samplers: which image goes into which slot of which batch, decided before any pixel is read.

A sampler is a pure function of ``(labels, seed, pass)``. A *pass* is one reading of the balanced
training list in a new order. Passes follow each other without a gap, so a batch may hold the end of
one and the start of the next, and no image is dropped. An *epoch* is a number of steps, set by the
user: Datta et al. 2021 call 919 batches an epoch, about a quarter of their list.

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
    """What a pass depends on beside the labels.

    Attributes:
        seed: Seed of every order.
        index: Number of the pass.
        per_class: ``equal``: images of each class in one pass; 0 for the mean count of a class.
        factors: Multiplies the count of each class, by label; () for 1.
        options: ``config.sampler.options``, for samplers registered elsewhere.
    """

    seed: int
    index: int
    per_class: int = 0
    factors: tuple[float, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


#: Samplers by name: ``(labels, draw) -> positions into labels``, as many in every pass.
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
    return _by_count(labels, int(_present(labels).max()), draw)


@SAMPLERS.register("undersample")
def undersample(labels: Int[np.ndarray, " n"], draw: Draw) -> Int[np.ndarray, " slots"]:
    """Every class as often as the smallest."""
    return _by_count(labels, int(_present(labels).min()), draw)


@SAMPLERS.register("equal")
def equal(labels: Int[np.ndarray, " n"], draw: Draw) -> Int[np.ndarray, " slots"]:
    """Every class ``per_class`` times: over- and undersampling (Datta et al. 2021, section 3.1)."""
    if draw.per_class < 0:
        raise invalid("sampler.per_class", "a number of at least 0", draw.per_class)
    return _by_count(labels, draw.per_class or round(_present(labels).mean()), draw)


@SAMPLERS.register("balanced_batches")
def balanced_batches(labels: Int[np.ndarray, " n"], draw: Draw) -> Int[np.ndarray, " slots"]:
    """Classes take turns, slot by slot (Gessert et al. 2019, section II-F).

    Each batch holds every class equally often, or once more. A class's images are shuffled again
    whenever each has had its turn, wherever a pass ends. A pass has as many slots as images.
    """
    classes = np.unique(labels)
    turns = classes[np.arange(len(labels)) % len(classes)]
    length = int(_scaled(np.bincount(turns), draw).sum())
    slots = np.arange(draw.index * length, (draw.index + 1) * length)
    turn, whose = np.divmod(slots, len(classes))
    positions = np.empty(length, np.int64)
    for i, label in enumerate(classes.tolist()):
        members = np.flatnonzero(labels == label)
        cycle, place = np.divmod(turn[whose == i], len(members))
        first = cycle[0] if len(cycle) else 0
        orders = [
            members[shuffled(len(members), draw.seed, c, label + 1)]
            for c in np.unique(cycle).tolist()
        ]
        positions[whose == i] = [
            orders[c - first][p] for c, p in zip(cycle.tolist(), place.tolist(), strict=True)
        ]
    return positions


def _present(labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " classes"]:
    """The counts of the classes that have images."""
    counts = np.bincount(labels)
    return counts[counts > 0]


def _scaled(counts: np.ndarray, draw: Draw) -> Int[np.ndarray, " classes"]:
    if not draw.factors:
        return counts
    return np.rint(counts * np.array(draw.factors[: len(counts)])).astype(int)


def _by_count(
    labels: Int[np.ndarray, " n"], wanted: np.ndarray | int, draw: Draw
) -> Int[np.ndarray, " slots"]:
    """A shuffled list in which each class stands ``wanted`` times its factor.

    An image is used at most once more than another of its class; which ones is drawn in each pass.
    """
    counts = np.bincount(labels)
    wanted = _scaled(np.broadcast_to(wanted, counts.shape), draw)
    chosen = [np.zeros(0, np.int64)]
    for label in np.flatnonzero(counts).tolist():
        members = np.flatnonzero(labels == label)
        # + 1: a SeedSequence ignores a trailing 0.
        members = members[shuffled(len(members), draw.seed, draw.index, label + 1)]
        chosen.append(np.resize(members, wanted[label]))
    positions = np.concatenate(chosen)
    return positions[shuffled(len(positions), draw.seed, draw.index)]


def shuffled(count: int, *seeds: int) -> Int[np.ndarray, " count"]:
    """A permutation of ``range(count)`` that is a pure function of the seeds.

    It sorts raw bits of a bit generator, which NumPy keeps stable for ever, unlike ``permutation``.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seeds)).random_raw(count)
    return np.argsort(bits, kind="stable")


@dataclasses.dataclass(frozen=True)
class Sampler:
    """An endless, random-access sequence of batches of rows.

    Attributes:
        rows: Rows of the data set that may be used, int ``(n,)``.
        labels: Their classes, int ``(n,)``.
        batch_size: Slots in a batch, over all devices and hosts.
        seed: Seed of every order.
        name: One of ``SAMPLERS``.
        per_class: See `Draw`.
        factors: See `Draw`.
        drop_last: Whether a pass leaves out the images that would not fill its last batch, others
            in each pass, so that every pass starts with a batch (PyTorch's ``drop_last``).
        options: See `Draw`.
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
        if not self.pass_length:
            images = len(self.pass_order(0))
            raise invalid("sampler", f"a pass of at least {self.batch_size} images", images)

    def pass_order(self, index: int) -> Int[np.ndarray, " slots"]:
        """The order of one pass: positions into ``labels``."""
        draw = Draw(self.seed, index, self.per_class, self.factors, self.options)
        return SAMPLERS[self.name](self.labels, draw)

    @functools.cached_property
    def pass_length(self) -> int:
        """Slots in one pass."""
        total = len(self._order(0))
        return total - total % self.batch_size if self.drop_last else total

    @property
    def steps_per_pass(self) -> int:
        """Batches after which every image of a pass has been seen."""
        return -(-self.pass_length // self.batch_size)

    def _order(self, index: int) -> np.ndarray:
        # Only the newest pass is kept: memory does not grow with the steps taken.
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != index:
            kept = self.__dict__["_kept"] = (index, self.pass_order(index))
        return kept[1]

    def __getitem__(self, slot: int) -> int:
        """The row in a slot; slots are numbered through all batches and passes."""
        index, place = divmod(slot, self.pass_length)
        return int(self.rows[self._order(index)[place]])

    def batch(self, step: int) -> Int[np.ndarray, " batch"]:
        """The rows of the batch of a step, int64 ``(batch_size,)``."""
        first = step * self.batch_size
        return np.array([self[first + i] for i in range(self.batch_size)])
