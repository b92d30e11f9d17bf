"""What is timed, in this process or in that of a peer, and how."""

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

#: Datta et al.'s Adam: learning rate and epsilon.
RATE, EPSILON = 0.01, 0.1


def _block(result: Any) -> None:
    import jax  # peers do without it

    jax.block_until_ready(result)


class Flow(NamedTuple):
    """Batches or steps of which several are in flight.

    Attributes:
        start: Starts again, and yields at least so many items.
        warm: Uncounted items before a measurement, at least one.
        wait: Waits for an item; by default for JAX arrays.
        facts: What to tell about it.
    """

    start: Callable[[int], Iterator[Any]]
    warm: int
    wait: Callable[[Any], None] = _block
    facts: Mapping[str, Any] = {}

    def time(self, calls: int) -> float:
        """Mean seconds of an item, once all is in flight.

        Further items are used up uncounted, so that nothing is in flight when the next way is
        measured.
        """
        items = self.start(self.warm + calls)
        for _ in range(self.warm):
            item = next(items)
        self.wait(item)
        since = time.perf_counter()
        for _ in range(calls):
            item = next(items)
        self.wait(item)
        seconds = time.perf_counter() - since
        for item in items:
            self.wait(item)
        return seconds / calls


class Ready(NamedTuple):
    """A compiled step.

    Attributes:
        step: Takes a step and returns its result.
        wait: Waits for a result; by default for JAX arrays.
        facts: What to tell about the step.
        peak: Peak bytes on the accelerator; None without one.
    """

    step: Callable[[], Any]
    wait: Callable[[Any], Any] = _block
    facts: Mapping[str, Any] = {}
    peak: Callable[[], int | None] = lambda: None

    def time(self, calls: int) -> float:
        """Mean seconds of steps, after one that is not counted: the caches are not ours."""
        return Flow(lambda count: (self.step() for _ in range(count)), 1, self.wait).time(calls)

    def memory(self) -> int:
        """Peak bytes on the accelerator, or without one of this process."""
        # Linux counts kibibytes.
        return self.peak() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def jax_peak() -> int | None:
    """Peak bytes on JAX's first device; None on a CPU."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
