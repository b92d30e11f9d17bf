"""The plan: which image goes into which slot of which batch, before any pixel is read.

Everything here is a pure function of ``(labels, strategy, seed, pass)``. A *pass* is one reading
of the (balanced) training list in a fresh order; passes follow each other without a gap, so a batch
may hold the end of one and the start of the next and no image is ever dropped. An *epoch* is only a
number of steps, which the user sets: Datta et al. 2021 count 919 batches, about a quarter of their
list, as one.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int

from jaxattn.errors import InputError, suggestion

STRATEGIES = ("none", "oversample", "undersample", "equal")


def shuffled(count: int, *seeds: int) -> Int[np.ndarray, " count"]:
    """A permutation of ``range(count)`` that is a pure function of the seeds.

    NumPy promises the raw bits of a bit generator for ever, but not what ``permutation`` makes of
    them; so the order is that of the bits.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seeds)).random_raw(count)
    return np.argsort(bits, kind="stable")


def counts(
    labels: Int[np.ndarray, " n"], strategy: str, per_class: int = 0
) -> Int[np.ndarray, " classes"]:
    """How often each class stands in one pass.

    Args:
        labels: Class of each image.
        strategy: ``none``: as often as it is there. ``oversample``: every class as often as the
            largest. ``undersample``: every class as often as the smallest. ``equal``: every class
            ``per_class`` times, the over- and under-sampling of Datta et al. 2021, section 3.1.
        per_class: The count of ``equal``; 0 for the mean count of a class.

    Returns:
        Images of each class in one pass; 0 for a class without images.

    Raises:
        InputError: Unknown strategy or a negative ``per_class``.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"plan.strategy: {strategy!r} given{suggestion(strategy, STRATEGIES)}")
    if per_class < 0:
        raise InputError(f"plan.per_class: {per_class} given, 0 or more wanted")
    there = np.bincount(labels)
    present = there[there > 0]
    wanted = {
        "none": there,
        "oversample": present.max(),
        "undersample": present.min(),
        "equal": per_class or round(present.mean()),
    }[strategy]
    return np.where(there > 0, wanted, 0)


def one_pass(
    labels: Int[np.ndarray, " n"], strategy: str, seed: int, index: int, per_class: int = 0
) -> Int[np.ndarray, " slots"]:
    """The order of images in pass ``index``: positions into ``labels``.

    An image of a class is used once more than another of its class at most; which ones are is drawn
    anew in each pass.
    """
    wanted = counts(labels, strategy, per_class)
    chosen = []
    for label in np.flatnonzero(wanted).tolist():
        members = np.flatnonzero(labels == label)
        # + 1: a SeedSequence takes a trailing 0 for nothing.
        members = members[shuffled(len(members), seed, index, label + 1)]
        chosen.append(np.resize(members, wanted[label]))
    positions = np.concatenate(chosen)
    return positions[shuffled(len(positions), seed, index)]


@dataclasses.dataclass(frozen=True)
class Plan:
    """An endless, random-access sequence of batches.

    Attributes:
        rows: Rows of the data set that may be used, int ``(n,)``.
        labels: Their classes, int ``(n,)``.
        batch_size: Slots in a batch, over all devices and hosts.
        seed: Seed of every order.
        strategy: See `counts`.
        per_class: See `counts`.
    """

    rows: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    batch_size: int
    seed: int = 0
    strategy: str = "none"
    per_class: int = 0

    def __post_init__(self):
        if not len(self.rows):
            raise InputError("plan: no training images given, at least one wanted")
        if self.batch_size < 1:
            raise InputError(f"batch_size: {self.batch_size} given, 1 or more wanted")
        counts(self.labels, self.strategy, self.per_class)  # raises for a wrong strategy

    @functools.cached_property
    def pass_length(self) -> int:
        """Slots in one pass."""
        return int(counts(self.labels, self.strategy, self.per_class).sum())

    @property
    def steps_per_pass(self) -> int:
        """Batches after which every image of a pass has been seen."""
        return -(-self.pass_length // self.batch_size)

    def _order(self, index: int) -> np.ndarray:
        # Only the newest pass is kept: memory does not grow with the steps taken.
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != index:
            order = one_pass(self.labels, self.strategy, self.seed, index, self.per_class)
            kept = self.__dict__["_kept"] = (index, order)
        return kept[1]

    def __getitem__(self, slot: int) -> int:
        """The row in a slot; slots are numbered through all batches and passes."""
        index, place = divmod(slot, self.pass_length)
        return int(self.rows[self._order(index)[place]])

    def batch(self, step: int) -> Int[np.ndarray, " batch"]:
        """The rows of the batch of a step, int64 ``(batch_size,)``."""
        first = step * self.batch_size
        return np.array([self[first + i] for i in range(self.batch_size)])
