"""The plan: which image goes into which slot of which batch, before any pixel is read.

Everything here is a pure function of ``(labels, strategy, seed, pass)``. A *pass* is one reading
of the (balanced) training list in a fresh order; passes follow each other without a gap, so a batch
may hold the end of one and the start of the next and no image is ever dropped. An *epoch* is only a
number of steps, which the user sets: Datta et al. 2021 count 919 batches, about a quarter of their
list, as one.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from jaxattn.errors import InputError, suggestion

STRATEGIES = ("none", "oversample", "undersample", "equal", "balanced_batches")


def shuffled(count: int, *seeds: int) -> Int[np.ndarray, " count"]:
    """A permutation of ``range(count)`` that is a pure function of the seeds.

    NumPy promises the raw bits of a bit generator for ever, but not what ``permutation`` makes of
    them; so the order is that of the bits.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seeds)).random_raw(count)
    return np.argsort(bits, kind="stable")


def by_class(factors: Mapping[str, float], class_names: Sequence[str]) -> tuple[float, ...]:
    """The factors of ``plan.factors`` in the order of the classes; 1 for a class without.

    Raises:
        InputError: A factor names no class or is negative.
    """
    for name, factor in factors.items():
        if name not in class_names:
            raise InputError(f"plan.factors: class {name!r} given{suggestion(name, class_names)}")
        if factor < 0:
            raise InputError(f"plan.factors.{name}: {factor} given, 0 or more wanted")
    return tuple(float(factors.get(name, 1)) for name in class_names)


def counts(
    labels: Int[np.ndarray, " n"],
    strategy: str,
    per_class: int = 0,
    factors: tuple[float, ...] = (),
) -> Int[np.ndarray, " classes"]:
    """How often each class stands in one pass.

    Args:
        labels: Class of each image.
        strategy: ``none``: as often as it is there. ``oversample``: every class as often as the
            largest. ``undersample``: every class as often as the smallest. ``equal``: every class
            ``per_class`` times, the over- and under-sampling of Datta et al. 2021, section 3.1.
            ``balanced_batches``: the classes take turns, slot by slot, so that each batch holds
            every class equally often, or once more (Gessert et al. 2019, II-F); a pass has as many
            slots as there are images.
        per_class: The count of ``equal``; 0 for the mean count of a class.
        factors: What the count of each class is then multiplied by; () for 1. With ``none``, a
            factor of 4 has each image of its class four times in a pass.

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
        "balanced_batches": _turns(there),
    }[strategy]
    if factors:
        wanted = np.rint(wanted * np.array(factors[: len(there)])).astype(int)
    return np.where(there > 0, wanted, 0)


def one_pass(
    labels: Int[np.ndarray, " n"],
    strategy: str,
    seed: int,
    index: int,
    per_class: int = 0,
    factors: tuple[float, ...] = (),
) -> Int[np.ndarray, " slots"]:
    """The order of images in pass ``index``: positions into ``labels``.

    An image of a class is used once more than another of its class at most; which ones are is drawn
    anew in each pass. In ``balanced_batches`` a class's images are shuffled anew whenever all of
    them have had their turn, wherever a pass ends.
    """
    wanted = counts(labels, strategy, per_class, factors)
    if strategy == "balanced_batches":
        return _in_turn(labels, seed, index, int(wanted.sum()))
    chosen = []
    for label in np.flatnonzero(wanted).tolist():
        members = np.flatnonzero(labels == label)
        # + 1: a SeedSequence takes a trailing 0 for nothing.
        members = members[shuffled(len(members), seed, index, label + 1)]
        chosen.append(np.resize(members, wanted[label]))
    positions = np.concatenate(chosen)
    return positions[shuffled(len(positions), seed, index)]


def _turns(there: Int[np.ndarray, " classes"]) -> Int[np.ndarray, " classes"]:
    """How many slots of the first pass each class has where classes take turns."""
    classes = np.flatnonzero(there)
    turns = classes[np.arange(there.sum()) % len(classes)]
    return np.bincount(turns, minlength=len(there))


def _in_turn(
    labels: Int[np.ndarray, " n"], seed: int, index: int, length: int
) -> Int[np.ndarray, " slots"]:
    classes = np.unique(labels)
    turn, whose = np.divmod(np.arange(index * length, (index + 1) * length), len(classes))
    positions = np.empty(length, np.int64)
    for i, label in enumerate(classes.tolist()):
        members = np.flatnonzero(labels == label)
        cycle, place = np.divmod(turn[whose == i], len(members))
        first = cycle[0] if len(cycle) else 0
        orders = [
            members[shuffled(len(members), seed, c, label + 1)] for c in np.unique(cycle).tolist()
        ]
        positions[whose == i] = [
            orders[c - first][p] for c, p in zip(cycle.tolist(), place.tolist(), strict=True)
        ]
    return positions


@dataclasses.dataclass(frozen=True)
class Sampler:
    """An endless, random-access sequence of batches.

    Attributes:
        rows: Rows of the data set that may be used, int ``(n,)``.
        labels: Their classes, int ``(n,)``.
        batch_size: Slots in a batch, over all devices and hosts.
        seed: Seed of every order.
        strategy: See `counts`.
        per_class: See `counts`.
        factors: See `counts`.
        drop_last: Whether a pass leaves out the images that would not fill its last batch, other
            ones in each pass, so that every pass starts with a batch (PyTorch's ``drop_last``).
    """

    rows: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    batch_size: int
    seed: int = 0
    strategy: str = "none"
    per_class: int = 0
    factors: tuple[float, ...] = ()
    drop_last: bool = False

    def __post_init__(self):
        if not len(self.rows):
            raise InputError("plan: no training images given, at least one wanted")
        if self.batch_size < 1:
            raise InputError(f"batch_size: {self.batch_size} given, 1 or more wanted")
        if not self.pass_length:  # also raises for a wrong strategy
            raise InputError(
                f"plan: less than a batch of {self.batch_size} images in a pass given, at least "
                "one batch wanted"
            )

    @functools.cached_property
    def pass_length(self) -> int:
        """Slots in one pass."""
        total = int(counts(self.labels, self.strategy, self.per_class, self.factors).sum())
        return total - total % self.batch_size if self.drop_last else total

    @property
    def steps_per_pass(self) -> int:
        """Batches after which every image of a pass has been seen."""
        return -(-self.pass_length // self.batch_size)

    def _order(self, index: int) -> np.ndarray:
        # Only the newest pass is kept: memory does not grow with the steps taken.
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != index:
            order = one_pass(
                self.labels, self.strategy, self.seed, index, self.per_class, self.factors
            )
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
