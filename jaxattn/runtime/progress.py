"""Shows how far a run is: a bar on a terminal, a line now and then in a file."""

import time
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Meter:
    """How far a run is and how fast; a context manager."""

    def __init__(self, total: int, step: int, batch_size: int):
        """Begins at a step of ``total``; each takes ``batch_size`` images."""
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._terminal, self._shows = self._console.is_terminal, jax.process_index() == 0
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.fields[status]}, left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (self._terminal and self._shows),
        )
        self._task = self._bar.add_task("", total=total, completed=step, status="compiling")
        self._total, self._batch_size = total, batch_size
        self._since: float | None = None
        self._images = 0

    def __enter__(self) -> "Meter":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def count(self, measured: Any) -> None:
        """Counts a step; the first after a pause, which may compile, only starts the clock."""
        if self._since is None:
            jax.block_until_ready(measured)
            self._since = time.perf_counter()
        else:
            self._images += self._batch_size

    def pause(self) -> None:
        """Leaves out the time until the next step."""
        self._since, self._images = None, 0

    def rate(self) -> float:
        """Images per second since the last call or pause."""
        now = time.perf_counter()
        seconds = now - (self._since or now)
        rate = self._images / seconds if seconds else 0.0
        self._since, self._images = now, 0
        return rate

    def show(self, step: int, status: str) -> None:
        """Shows the step and a few words on it."""
        self._bar.update(self._task, completed=step, status=status)
        if not self._terminal:
            self.print(f"step {step}/{self._total}: {status}")

    def print(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._shows:
            self._console.print(line)
