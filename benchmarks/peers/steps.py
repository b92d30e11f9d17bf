"""The functions of a peer that takes training steps, and the loop that times them."""

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

#: Datta et al.'s Adam: learning rate and epsilon.
RATE, EPSILON = 0.01, 0.1


class Ready(NamedTuple):
    """A compiled step.

    Attributes:
        step: Takes a step and returns its result.
        wait: Waits for a result.
        facts: Facts about the model, numbers and strings.
        memory: Peak bytes on the accelerator; None without one.
    """

    step: Callable[[], Any]
    wait: Callable[[Any], Any]
    facts: Mapping[str, Any]
    memory: Callable[[], int | None]

    def time(self, calls: int) -> float:
        """Mean seconds of steps, after one that is not counted: the caches are not ours."""
        return steady((self.step() for _ in range(1 + calls)), self.wait, 1, calls)


def steady(work: Iterator[Any], wait: Callable[[Any], Any], warm: int, calls: int) -> float:
    """Mean seconds of an item of ``work``, once all is in flight.

    Args:
        work: Queues a step or reads a batch for each item.
        wait: Waits for an item.
        warm: Uncounted items before.
        calls: Counted items. The rest is used up uncounted, so that nothing is in flight when the
            next way is measured.
    """
    for _ in range(warm):
        item = next(work)
    if warm:
        wait(item)
    since = time.perf_counter()
    for _ in range(calls):
        item = next(work)
    wait(item)
    seconds = time.perf_counter() - since
    for item in work:
        wait(item)
    return seconds / calls


def functions(make: Callable[..., Ready]) -> dict[str, Callable[..., Any]]:
    """The functions of a peer: ``prepare``, which returns the facts, ``time`` and ``memory``.

    Args:
        make: Makes a step ready, of the arguments of ``prepare``.
    """
    ready: list[Ready] = []

    def prepare(**arguments: Any) -> Mapping[str, Any]:
        ready[:] = [make(**arguments)]
        return ready[0].facts

    def memory() -> int:
        # Linux counts kibibytes.
        return ready[0].memory() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    return {"prepare": prepare, "time": lambda calls: ready[0].time(calls), "memory": memory}
