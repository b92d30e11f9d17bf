"""The functions of a peer that takes training steps."""

import resource
import time
from collections.abc import Callable, Mapping
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

    return {"prepare": prepare, "time": lambda calls: timed(ready[0], calls), "memory": memory}


def timed(ready: Ready, calls: int) -> float:
    """Mean seconds of steps in a row."""
    since = time.perf_counter()
    for _ in range(calls):
        result = ready.step()
    ready.wait(result)
    return (time.perf_counter() - since) / calls
