"""Runs training's steps: says what memory they need, explains errors about it, traces a few."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxattn.errors import invalid


class Stepper:
    """Calls a jitted step; a context that ends the trace.

    The first call compiles it and prints a line with the memory that it needs. ``profile`` steps
    after the first are traced into a folder, for TensorBoard or Perfetto.
    """

    def __init__(
        self,
        step: Any,
        config: ConfigDict,
        device: jax.Device,
        folder: Path,
    ):
        """Compiles nothing yet.

        Args:
            step: The jitted function.
            config: ``batch_size``, which errors name, and ``profile``: how many steps to trace.
            device: One of the devices.
            folder: Of the trace.
        """
        self._step, self._device, self._folder = step, device, folder
        self._batch_size, self._profile = config.batch_size, config.profile
        self._compiled: Any = None
        self._taken, self._tracing = 0, False

    def __call__(self, *arguments: Any) -> Any:
        """Takes a step.

        Raises:
            InputError: It needs more memory than the device has.
        """
        with _explained(self._batch_size, self._device, self._compiled):
            if self._compiled is None:
                self._compiled = self._step.lower(*arguments).compile()
                if jax.process_index() == 0:
                    print(_line(self._batch_size, self._device, self._compiled), flush=True)
        with _explained(self._batch_size, self._device, self._compiled):
            if self._taken == 1 and self._profile:
                jax.profiler.start_trace(str(self._folder))
                self._tracing = True
            result = self._compiled(*arguments)
            self._taken += 1
            if self._taken == self._profile + 1 or self._taken == 1:
                jax.block_until_ready(result)  # so that errors about memory arise here
                self._end()
        return result

    def _end(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()

    def __enter__(self) -> "Stepper":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()


def _needed(compiled: Any) -> str:
    """The most memory that a program holds on each device, its arguments included."""
    found = compiled.memory_analysis() if compiled else None
    return f"about {found.peak_memory_in_bytes / 1e9:.1f} GB" if found else "an unknown size"


def _available(device: jax.Device) -> str:
    """The memory that a device can give; of a CPU the machine's."""
    if device.platform == "cpu":
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    return f"the {limit / 1e9:.1f} GB of {device.device_kind}" if limit else device.device_kind


def _line(batch_size: int, device: jax.Device, compiled: Any) -> str:
    return f"a step of {batch_size} images needs {_needed(compiled)} of {_available(device)}"


@contextlib.contextmanager
def _explained(batch_size: int, device: jax.Device, compiled: Any) -> Iterator[None]:
    """Turns XLA's error about memory, of many lines, into one."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise invalid(
            "batch_size",
            f"a step that fits in {_available(device)} (a smaller batch, accumulate_steps, "
            "remat=blocks and dtype=bfloat16 need less)",
            f"{batch_size} images, which need {_needed(compiled)}",
        ) from error
