"""What all benchmarks share: timing, the device's limits, result files and command lines."""

import functools
import hashlib
import inspect
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.peers.steps import Ready
from jaxattn import cli, run_dir, runtime

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: Load of the machine before the benchmark adds its own.
LOAD_BEFORE = os.getloadavg()[0]


def _commit() -> str:
    """The commit of the code, with a + if files changed since; empty without git."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return run.stdout.strip()

    if not shutil.which("git"):
        return ""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    return git("rev-parse", "--short=7", "HEAD") + ("+" if changed else "")


#: Read at import: the next change may be committed while a benchmark runs.
COMMIT = _commit()


def seconds(
    ways: Mapping[Any, Any], *, repeats: int = 7, calls: int = 1, least: float = 0.0
) -> dict[Any, dict[str, Any]]:
    """Times several ways to do the same thing in turn, so that other load affects all of them.

    Args:
        ways: By name, an object with a method ``time(calls) -> float``, mean seconds per call after
            one that is not counted, such as `steps.Ready`. A first measurement of each is dropped.
        repeats: Number of measurements of each way.
        calls: Number of calls in a row in one measurement.
        least: Minimum seconds of a measurement; faster ways are called more often in a row.

    Returns:
        By name, ``median``, ``min``, ``max`` and ``all`` seconds per call.
    """
    counts = {n: max(calls, round(least / max(way.time(1), 1e-9))) for n, way in ways.items()}
    taken: dict[Any, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            taken[name].append(way.time(counts[name]))
    return {
        name: {"median": statistics.median(each), "min": min(each), "max": max(each), "all": each}
        for name, each in taken.items()
    }


def limits(dtypes: Sequence[str], size: int = 0, side: int = 0) -> dict[str, Any]:
    """Measures the device's bandwidth and its speed in large matrix products.

    Products have JAX's default precision, which is TF32 for float32 on recent GPUs.

    Args:
        dtypes: Types of the products.
        size: Elements of the arrays that are added, float32; 0 for a size that suits the device.
        side: Height and width of the matrices; 0 for the default.

    Returns:
        ``bytes_per_second``, and ``flops_per_second`` by type.
    """
    on_cpu = jax.default_backend() == "cpu"
    size, side = size or (2**26 if on_cpu else 2**28), side or (2048 if on_cpu else 8192)
    total, other = (jnp.full(size, each, jnp.float32) for each in (0.0, 1e-3))
    add = jax.jit(jnp.add, donate_argnums=0)  # in place: fresh memory has a cost of its own

    def added() -> jax.Array:
        nonlocal total
        total = add(total, other)
        return total

    ways = {"add": Ready(added)}
    for dtype in dtypes:
        matrix = jnp.full((side, side), 1 / side, dtype)
        ways[dtype] = Ready(functools.partial(jax.jit(jnp.matmul), matrix, matrix))
    taken = seconds(ways, repeats=5, least=0.0 if on_cpu else 0.02)
    return {
        "bytes_per_second": 3 * 4 * size / taken["add"]["min"],
        "flops_per_second": {each: 2 * side**3 / taken[each]["min"] for each in dtypes},
    }


def machine() -> dict[str, Any]:
    """The device, the processor and its cores, and the versions of the packages that compute."""
    return {
        "device": run_dir.device(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": round(LOAD_BEFORE, 2),
        "versions": run_dir.versions(),
    }


def _processor() -> str:
    """The processor's model and its widest vector instructions."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine()
    lines = [line.split(":", 1) for line in path.read_text().splitlines() if ":" in line]
    info = {key.strip(): value.strip() for key, value in lines}
    flags = info.get("flags", "").split()
    widest = next((each for each in ("amx_tile", "avx512f", "avx2") if each in flags), "")
    return f"{info.get('model name', platform.machine())} {widest}".strip()


def earlier(path: Path) -> list[dict[str, Any]]:
    """The rows of a result file, if they were measured on this machine with these versions."""
    if not path.is_file():
        return []
    result = json.loads(path.read_text(encoding="utf-8"))
    facts = (machine(), result["machine"])
    now, then = ({k: v for k, v in each.items() if k != "load_before"} for each in facts)
    return result["rows"] if now == then else []


def write(
    benchmark: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    name: str = "",
    case: Sequence[str] = (),
    **further: Any,
) -> dict[str, Any]:
    """Writes a result, with the command and the machine, to ``results/NAME_DEVICE.json``.

    The environment variable ``JAXATTN_RESULTS`` names another folder.

    Args:
        benchmark: Name of the benchmark.
        rows: The measurements.
        name: Name of the file; by default the benchmark's.
        case: Fields that identify a row. If given, rows of other cases from earlier runs on the
            same machine are kept, and each row records its own command.
        **further: Further fields of the result.

    Returns:
        The result.
    """
    module = getattr(sys.modules["__main__"], "__spec__", None)
    command = f"-m {module.name}" if module else os.path.relpath(sys.argv[0])
    run = {"command": " ".join(["python", command, *sys.argv[1:]])}
    if COMMIT:
        run["commit"] = COMMIT
    device = jax.devices()[0].device_kind.lower().replace(" ", "_")
    path = Path(os.environ.get("JAXATTN_RESULTS", RESULTS)) / f"{name or benchmark}_{device}.json"
    latest = [dict(row) for row in rows]
    if case:
        both = [*earlier(path), *(row | run for row in latest)]
        latest = list({json.dumps([row[field] for field in case]): row for row in both}.values())
    result = {"benchmark": benchmark, **run, "machine": machine(), **further, "rows": latest}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def digest(files: Sequence[str]) -> str:
    """A hash of the contents of files of the repository; of a missing file, of nothing."""
    total = hashlib.sha256()
    for name in sorted(files):
        path = ROOT / name
        total.update(f"{name}\0".encode() + (path.read_bytes() if path.is_file() else b""))
    return total.hexdigest()[:16]


def stale(row: Mapping[str, Any]) -> bool:
    """Whether a file that the row covers changed since it was made."""
    return row.get("digest") != digest(row.get("files", ()))


def command_line(run: Callable[..., Any], devices: int = 1) -> None:
    """Runs a benchmark with flags made from its keyword arguments.

    Args:
        run: Its annotations give the flags' types, its docstring their help.
        devices: Devices to split a CPU into.
    """
    hints = typing.get_type_hints(run)
    for name, parameter in inspect.signature(run).parameters.items():
        found = re.search(
            rf"^\s+{name}: (.*?)(?=^\s+\w+: |\n\n|\Z)", run.__doc__ or "", re.M | re.S
        )
        text = " ".join(found[1].split()) if found else name
        define = {int: flags.DEFINE_integer, str: flags.DEFINE_string, bool: flags.DEFINE_bool}
        kind: Any = define.get(hints[name], flags.DEFINE_list)
        required = parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        if kind is flags.DEFINE_list and not required:
            default = [str(each) for each in parameter.default]
        kind(name, default, text, required=required)

    def main(argv: list[str]) -> None:
        del argv
        given = {name: flags.FLAGS[name].value for name in inspect.signature(run).parameters}
        for name, value in given.items():
            if isinstance(value, list):
                element = typing.get_args(hints[name])[0]
                given[name] = tuple(element(each) for each in value)
        runtime.setup(devices)
        run(**given)

    cli.run_main(main)
