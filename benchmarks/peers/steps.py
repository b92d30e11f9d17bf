"""What a process says that takes training steps: `train_step.py` asks ours and the peers' alike."""

import resource
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.peers.elsewhere import serve


class Ready(NamedTuple):
    """A step that can be taken.

    Attributes:
        step: Takes one, and returns what is to be waited for.
        wait: Waits for it.
        facts: What there is to know of the model, numbers and strings.
        memory: Bytes on an accelerator at the most, where that is known.
    """

    step: Callable[[], Any]
    wait: Callable[[Any], Any]
    facts: Mapping[str, Any]
    memory: Callable[[], int | None]


def serve_steps(
    about: Any,
    prepare: Callable[[dict[str, Any]], Ready],
    others: Callable[[dict[str, Any]], Any] | None = None,
) -> None:
    """Answers questions.

    * ``prepare``: makes a step ready; its facts.
    * ``calls``: takes so many steps; the mean seconds of one.
    * ``memory``: the most bytes there were, on the accelerator or else in this process.

    Args:
        about: What the process has to say of itself.
        prepare: What makes a step ready, of the object that the question ``prepare`` has.
        others: What answers any other question.
    """
    ready: list[Ready] = []

    def answers(question: dict[str, Any]) -> Any:
        if "prepare" in question:
            ready[:] = [prepare(question["prepare"])]
            return ready[0].facts
        if "calls" in question:
            since = time.perf_counter()
            for _ in range(question["calls"]):
                result = ready[0].step()
            ready[0].wait(result)
            return (time.perf_counter() - since) / question["calls"]
        if "memory" in question:
            # Linux counts kibibytes.
            return ready[0].memory() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        assert others
        return others(question)

    serve(about, answers)
