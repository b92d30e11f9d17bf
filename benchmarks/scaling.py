"""The training step on several devices: its cost, and what the devices exchange.

``benchmarks/README.md`` says what is measured and how.

    python -m benchmarks.scaling [--devices=1,2,4,8]
"""

import math
from typing import Any, NamedTuple

import jax
from flax import traverse_util
from jax.sharding import AxisType, Mesh

from benchmarks import hlo, measure, ours, tables
from benchmarks.peers.steps import Ready
from jaxattn import train
from jaxattn.errors import invalid

#: What an exchange is for.
STATISTICS, GRADIENTS, METRICS = "statistics", "gradients", "metrics"


class Exchange(NamedTuple):
    """One array that devices exchange.

    Attributes:
        kind: One of `hlo.COLLECTIVES`.
        instruction: Name of the instruction, which may exchange several arrays.
        bytes: Size of the result on each device.
        purpose: Statistics of batch norm, gradients, or metrics.
    """

    kind: str
    instruction: str
    bytes: int
    purpose: str


def exchanges(text: str) -> list[Exchange]:
    """Every array of every collective of a compiled program in which no loop exchanges anything.

    An instruction merged from several has a single name, so the purpose of an array is read off the
    instruction that computes it: the pass that its JAX name belongs to; scalars of the forward pass
    are metrics.
    """
    program, _ = hlo.parse(text)
    found = []
    for each in (line for lines in program.values() for line in lines.values()):
        kind = each.op.removesuffix("-start")
        if kind not in hlo.COLLECTIVES:
            continue
        # The start of an asynchronous exchange may return its operands before its results.
        count = len(each.operands)
        first = count if kind != each.op and len(each.results) >= 2 * count else 0
        for operand, array in zip(each.operands, each.results[first:], strict=False):
            line = program[each.within].get(operand, each)
            size = array.size * array.itemsize
            found.append(
                Exchange(kind, each.name, size, _purpose(line.source or each.source, size))
            )
    return found


def _purpose(source: str, size: int) -> str:
    if "transpose(" in source:
        return GRADIENTS
    return METRICS if size <= 4 else STATISTICS


def by_hand(params: Any, batch_stats: Any) -> dict[str, int]:
    """Bytes that a step has to exchange, by purpose.

    Args:
        params: Parameters, or their shapes; a batch norm's have the path of its statistics.
        batch_stats: ``mean`` and ``var`` of each batch norm, or their shapes.
    """
    parameters = traverse_util.flatten_dict(params)
    statistics = traverse_util.flatten_dict(batch_stats)
    of_statistics = sum(
        math.prod(leaf.shape)
        for path, leaf in statistics.items()
        if path[-1] == "mean" or (*path[:-1], "scale") not in parameters
    )
    count = sum(math.prod(leaf.shape) for leaf in parameters.values())
    return {
        STATISTICS: 4 * sum(math.prod(leaf.shape) for leaf in statistics.values()),
        GRADIENTS: 4 * (count + of_statistics),
        METRICS: 4 * 2,
    }


def communication(step: ours.Step, devices: int) -> dict[str, Any]:
    """A row: what a step exchanges, and what it should."""
    found = exchanges(step.compiled.as_text() or "")
    counted = {purpose: 0 for purpose in (STATISTICS, GRADIENTS, METRICS)}
    for each in found:
        counted[each.purpose] += each.bytes
    wanted = by_hand(step.state.params, step.state.batch_stats)
    return {
        "measured": "communication",
        "devices": devices,
        "instructions": {
            kind: len({each.instruction for each in found if each.kind == kind})
            for kind in sorted({each.kind for each in found})
        },
        "bytes": counted,
        "by_hand": wanted if devices > 1 else dict.fromkeys(wanted, 0),
    }


def first_devices(count: int) -> Mesh:
    """A mesh like `jaxattn.runtime.devices.mesh`, of the first devices."""
    devices = jax.devices()[:count]
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def run(
    devices: tuple[int, ...] = (1, 2, 4, 8),
    per_device: int = 8,
    batch: int = 64,
    size: int = 64,
    width: int = 24,
    repeats: int = 7,
    least_ms: int = 500,
) -> None:
    """Measures the step on each number of devices and writes the result.

    Args:
        devices: Numbers of devices; those that exist are used.
        per_device: Images per device, where these are fixed.
        batch: Images in all, where these are fixed.
        size: Height and width of the images.
        width: Width of the model.
        repeats: Number of measurements of each step.
        least_ms: Minimum milliseconds of a measurement.
    """
    counts = [count for count in devices if count <= jax.device_count()]
    batches = {
        "per device": {count: per_device * count for count in counts},
        "in all": dict.fromkeys(counts, batch),
    }
    steps: dict[tuple[int, int], ours.Step] = {}
    for count in counts:
        if batch % count:
            raise invalid("--batch", f"a multiple of {count} devices", batch)
        for images in {of_count[count] for of_count in batches.values()}:
            run = train.setup(ours.small(size, width, images), first_devices(count))
            steps[count, images] = ours.Step(run)
    ways = {key: Ready(step) for key, step in steps.items()}
    took = measure.seconds(ways, repeats=repeats, least=least_ms / 1e3)
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any]
    for fixed, of_count in batches.items():
        for count, images in of_count.items():
            facts = {"measured": "cost", "fixed": fixed, "devices": count, "batch": images}
            seconds = took[count, images]
            facts |= {f"{name}_ms": 1e3 * seconds[name] for name in ("median", "min", "max")}
            one = next(row for row in [*rows, facts] if row["fixed"] == fixed)
            facts["per_image"] = facts["median_ms"] / images / (one["median_ms"] / one["batch"])
            rows.append(facts)
    rows += [communication(steps[count, batch], count) for count in counts]
    print(tables.scaling(measure.write("scaling", rows, size=size)))


if __name__ == "__main__":
    measure.command_line(run, devices=8)
