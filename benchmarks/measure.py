"""What the benchmarks share: timing side by side, the machine, and the files of results.

Each benchmark is a module with ``NAME``, ``main`` and ``table(result) -> str`` (Markdown), and
``goals(result) -> list[Goal]`` where there are any. It writes
``benchmarks/results/NAME_LABEL.json`` with `write`, and ``benchmarks/render.py`` makes
``benchmarks/README.md`` of all that lie there, so that no number is typed by hand.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxattn import run_dir

RESULTS = Path(__file__).parent / "results"
#: Before the benchmark itself makes some.
LOAD_BEFORE = os.getloadavg()[0]


def _commit() -> str:
    """The commit of the code that is measured, with a + where it was changed; empty without git."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        return run.stdout.strip()

    root = Path(__file__).resolve().parents[1]
    if not shutil.which("git"):
        return ""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    return git("rev-parse", "--short=7", "HEAD") + ("+" if changed else "")


#: Of the code as it was loaded: while a benchmark runs, the next change may be committed.
COMMIT = _commit()


class Goal(NamedTuple):
    """What was to be reached in one case.

    Attributes:
        what: The goal, with what was wanted; the same for all its cases.
        case: What was measured.
        value: How much was reached.
        reached: Whether that is enough.
    """

    what: str
    case: str
    value: float
    reached: bool

    @property
    def verdict(self) -> str:
        """The goal and whether it is reached, in Markdown."""
        return f"{self.what} {'reached' if self.reached else '**missed**'}"


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
        "device": run_dir.device(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": round(LOAD_BEFORE, 2),
        "versions": run_dir.versions(),
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


def span(values: Iterable[float]) -> str:
    """The least and the largest, to three digits; one number where they are then the same."""
    both = sorted(values)
    ends = (f"{each:.3g}" if each < 100 else f"{each:,.0f}" for each in (both[0], both[-1]))
    return "–".join(dict.fromkeys(ends))


def speeds(measured: Iterable[tuple[str, float]]) -> str:
    """In words: types, and operations per second of a large product in each."""
    by_type: dict[str, list[float]] = {}
    for dtype, speed in measured:
        by_type.setdefault(dtype, []).append(speed / 1e9)
    return ", ".join(f"{span(each)} GFLOP/s {dtype}" for dtype, each in by_type.items())


def earlier(path: Path) -> list[dict[str, Any]]:
    """The rows in a file of results, if they were measured on this machine with these versions."""
    if not path.is_file():
        return []
    result = json.loads(path.read_text(encoding="utf-8"))
    facts = (machine(), result["machine"])
    now, then = ({k: v for k, v in each.items() if k != "load_before"} for each in facts)
    return result["rows"] if now == then else []


def write(
    name: str, rows: Sequence[Mapping[str, Any]], *, case: Sequence[str] = (), **further: Any
) -> Path:
    """Writes the result of a benchmark, with the command and the machine.

    Args:
        name: The benchmark's ``NAME``.
        rows: What was measured.
        case: Fields that say what a row is of. With them, rows of other cases stay that earlier
            runs on the same machine have written, and each row has its own command.
        **further: What else belongs to it.

    Returns:
        The file, ``NAME_LABEL.json`` in the folder that the environment variable
        ``JAXATTN_RESULTS`` names, or in that of the committed results.
    """
    run = {"command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])}
    if COMMIT:
        run["commit"] = COMMIT
    out = Path(os.environ.get("JAXATTN_RESULTS", RESULTS))
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}_{label()}.json"
    latest = [dict(row) for row in rows]
    if case:
        both = [*earlier(path), *(row | run for row in latest)]
        latest = list({json.dumps([row[field] for field in case]): row for row in both}.values())
    result = {"benchmark": name, **run, "machine": machine(), **further, "rows": latest}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path
