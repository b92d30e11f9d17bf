"""What the benchmarks share: timing side by side, the machine, and the files of results.

Each benchmark is a module with ``NAME``, ``main`` and ``table(result) -> str`` (Markdown). It
writes ``benchmarks/results/NAME_LABEL.json`` with `write`, and ``benchmarks/render.py`` makes
``benchmarks/README.md`` of all that lie there, so that no number is typed by hand.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxattn import runs

RESULTS = Path(__file__).parent / "results"
#: Before the benchmark itself makes some.
LOAD_BEFORE = os.getloadavg()[0]


def seconds(
    ways: Mapping[str, Callable[[], Any]], *, repeats: int = 7, least: float = 0.0
) -> dict[str, dict[str, float]]:
    """Times several ways to do one thing in turn, so that what else the machine does hits all.

    Args:
        ways: Name to a call that returns when its work is done (of JAX: a tree of arrays, which is
            waited for). The first call of each compiles and is not counted. One that has a method
            ``time(calls) -> float``, as one in another process, measures its own mean seconds.
        repeats: Times each is measured.
        least: Seconds that one measurement takes at the least: faster ways are called several
            times in a row, and the mean is the measurement.

    Returns:
        For each way the ``median``, ``min`` and ``max`` seconds of a call, and ``first``, the
        seconds of the uncounted first one.
    """
    first, calls = {}, {}
    for name, way in ways.items():
        first[name] = _time(way, 1)
        calls[name] = max(1, round(least / max(_time(way, 1), 1e-9))) if least else 1
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            taken[name].append(_time(way, calls[name]))
    return {
        name: {
            "median": statistics.median(each),
            "min": min(each),
            "max": max(each),
            "first": first[name],
        }
        for name, each in taken.items()
    }


def _time(way: Callable[[], Any], calls: int) -> float:
    if hasattr(way, "time"):
        return way.time(calls)
    since = time.perf_counter()
    for _ in range(calls):
        result = way()
    jax.block_until_ready(result)
    return (time.perf_counter() - since) / calls


def machine() -> dict[str, Any]:
    """The device, the processor and its cores, and the versions of what computes."""
    return {
        "device": runs.device(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": round(LOAD_BEFORE, 2),
        "versions": runs.versions(),
    }


def _processor() -> str:
    """The processor's model and its widest vector instructions, which decide its speed."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine()
    lines = [line.split(":", 1) for line in path.read_text().splitlines() if ":" in line]
    info = {key.strip(): value.strip() for key, value in lines}
    flags = info.get("flags", "").split()
    widest = next((each for each in ("amx_tile", "avx512f", "avx2") if each in flags), "")
    return f"{info.get('model name', platform.machine())} {widest}".strip()


def label() -> str:
    """What results of this machine are filed under: ``cpu``, or the accelerator's name."""
    kind = jax.devices()[0].device_kind
    return kind.lower().replace(" ", "_")


def write(name: str, rows: Sequence[Mapping[str, Any]], **further: Any) -> Path:
    """Writes the result of a benchmark, with the command and the machine.

    Args:
        name: The benchmark's ``NAME``.
        rows: What was measured.
        **further: What else belongs to it.

    Returns:
        The file, ``NAME_LABEL.json`` in the folder that the environment variable
        ``JAXATTN_RESULTS`` names, or in that of the committed results.
    """
    command = " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    result = {"benchmark": name, "command": command, "machine": machine(), **further}
    out = Path(os.environ.get("JAXATTN_RESULTS", RESULTS))
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}_{label()}.json"
    path.write_text(json.dumps(result | {"rows": list(rows)}, indent=1) + "\n", encoding="utf-8")
    return path
