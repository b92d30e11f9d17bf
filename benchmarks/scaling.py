"""What the training step costs on several devices, and what they say to each other in it.

    python benchmarks/scaling.py [--devices=1,2,4,8] [--step_ms=25,50,100,200] [--smoke]

**Cost.** The real training step on the first 1, 2, 4, … devices, with as many images per device
and with as many images in all. On a CPU the devices are virtual: they share its cores, so nothing
gets faster, and what a step costs more per image than on one device is what the program pays for
being spread.

**Communication.** What devices exchange in a step, read from the compiled program, against a count
by hand (`by_hand`), in which a float32 of each of these goes once through an all-reduce:

- in the forward pass, the mean of x and of x² of each channel of each batch norm, so that batch
  statistics are those of the whole batch;
- in the backward pass, the gradient of each parameter, and of each channel's mean (and variance,
  where there is no scale: the scale's gradient is the same sum, up to a factor per channel);
- the loss and the accuracy.

**On paper.** What that makes of 8 GPUs in one host and of 64 such hosts, at a fixed batch per
device. An all-reduce of S bytes among n devices, each sending B bytes per second with latency a,
takes ``t(S, n) = 2 ⌈log2 n⌉ a + 2 (n − 1)/n · S / B``: the latency of a tree, the bytes of a ring.
On several hosts that of each host's devices (``--link_gb``, ``--link_us``) and then that of the
hosts (``--network_gb`` of each, ``--network_us``) follow each other. A batch norm waits for its
statistics in both passes. The gradients' all-reduce is pessimistically waited for in whole, and
optimistically only for what it takes longer than the backward pass, two thirds of the step. With c
the time of a step on one device (``--step_ms``: measured elsewhere, or a range), L batch norms of C
channels in all and P parameters, a step takes ``c + 2 L t(8 C / L, n) + t(4 P, n)``, or
``c + 2 L t(8 C / L, n) + max(0, t(4 P, n) − 2/3 c)``, and the efficiency is c over that. Nothing of
it is measured on such machines.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
from absl import flags
from flax import traverse_util
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from benchmarks import measure
from jaxattn import experiment
from jaxattn.config import base
from jaxattn.data.loaders import Loader
from jaxattn.errors import InputError
from jaxattn.cli import run_main
from jaxattn.models import registry
from jaxattn.runtime import devices

NAME = "scaling"

#: What an exchange is for.
STATISTICS, GRADIENTS, METRICS = "statistics", "gradients", "metrics"
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
#: Flags of a smoke test.
TOY = {"devices": ["1", "2"], "per_device": 4, "batch": 8, "repeats": 1, "least": 0.0}
TOY |= {"size": 32, "width": 8, "models": ["attention_cnn"]}

_INSTRUCTION = re.compile(r"^ *(?:ROOT )?%(?P<name>[\w.-]+) = .*$", re.MULTILINE)
_COLLECTIVE = re.compile(
    rf" = (?P<shape>\(.*?\)|\S+) (?P<kind>{'|'.join(COLLECTIVES)})(?P<start>-start)?"
    r"\((?P<operands>[^)]*)\)"
)
_ARRAY = re.compile(r"\b(?P<letters>pred|bf|[a-z])(?P<bits>\d*)(?:e\w+)?\[(?P<lengths>[\d,]*)\]")
_OP_NAME = re.compile(r'metadata=\{[^}]*op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One array that devices exchange.

    Attributes:
        kind: One of ``COLLECTIVES``.
        instruction: Name of the instruction, which may exchange several arrays.
        bytes: Size of the result on each device.
        purpose: Statistics of batch norm, gradients, or metrics.
    """

    kind: str
    instruction: str
    bytes: int
    purpose: str


def exchanges(hlo: str) -> list[Exchange]:
    """Reads a compiled program.

    Args:
        hlo: The text of its HLO; nothing in it may exchange in a loop.

    Returns:
        Every array of every collective. An instruction that was merged of several has one name for
        all of them, so what an array is for is told by what computes it: by the pass that JAX's
        name for that is of, and scalars of the forward pass are metrics.
    """
    lines = {match["name"]: match[0] for match in _INSTRUCTION.finditer(hlo)}
    found = []
    for name, line in lines.items():
        match = _COLLECTIVE.search(line)
        if not match:
            continue
        operands = re.findall(r"%([\w.-]+)", match["operands"])
        arrays = [_bytes(array) for array in _ARRAY.finditer(match["shape"])]
        # What starts an exchange may return its operands before its results.
        first = len(operands) if match["start"] and len(arrays) >= 2 * len(operands) else 0
        for operand, size in zip(operands, arrays[first:], strict=False):
            origin = _op_name(lines.get(operand, "")) or _op_name(line)
            found.append(Exchange(match["kind"], name, size, _purpose(origin, size)))
    return found


def _op_name(line: str) -> str:
    match = _OP_NAME.search(line)
    return match[1] if match else ""


def _purpose(op_name: str, size: int) -> str:
    if "transpose(" in op_name:
        return GRADIENTS
    return METRICS if size <= 4 else STATISTICS


def _bytes(array: re.Match[str]) -> int:
    lengths = [int(length) for length in array["lengths"].split(",") if length]
    bits = 8 if array["letters"] == "pred" else int(array["bits"])
    return math.prod(lengths) * max(1, bits // 8)


def by_hand(params: Any, batch_stats: Any) -> dict[str, int]:
    """Bytes that are to be exchanged in a step, by purpose.

    Args:
        params: Parameters, or their shapes; a batch norm's under the names that its statistics
            have.
        batch_stats: ``mean`` and ``var`` of each batch norm, or their shapes.
    """
    given = traverse_util.flatten_dict(params)
    statistics = traverse_util.flatten_dict(batch_stats)
    of_statistics = sum(
        math.prod(leaf.shape)
        for path, leaf in statistics.items()
        if path[-1] == "mean" or (*path[:-1], "scale") not in given
    )
    parameters = sum(math.prod(leaf.shape) for leaf in given.values())
    return {
        STATISTICS: 4 * sum(math.prod(leaf.shape) for leaf in statistics.values()),
        GRADIENTS: 4 * (parameters + of_statistics),
        METRICS: 4 * 2,
    }


def first_devices(count: int) -> Mesh:
    """A mesh of the first devices, as `devices.mesh` makes one of all."""
    devices = jax.devices()[:count]
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


class Step:
    """The real training step on some of the devices, on one batch that is in place."""

    def __init__(self, built: experiment.Experiment, state: Any, devices: int, batch_size: int):
        """Compiles the step.

        Args:
            built: What to train.
            state: Its state before the first step, of which a copy is taken.
            devices: How many of the devices.
            batch_size: Images in all.
        """
        config, mesh = built.config, first_devices(devices)
        plan = dataclasses.replace(built.plan, batch_size=batch_size)
        loader = Loader(built.dataset, config.dataset.image_size, config.loader, mesh)
        built = dataclasses.replace(built, mesh=mesh, plan=plan, loader=loader)
        self.state, self._data = devices.put_replicated(mesh, state), loader.data
        (self._batch,) = loader.training(plan, 0, 1)
        lowered = built.train_step().lower(self.state, self._data, self._batch)
        self.compiled = lowered.compile()

    def __call__(self) -> Any:
        """One step; returns its metrics."""
        self.state, metrics = self.compiled(self.state, self._data, self._batch)
        return metrics


def all_reduce(size: float, devices: int, bandwidth: float, latency: float) -> float:
    """Seconds of an all-reduce of so many bytes, see t(S, n) above."""
    if devices == 1:
        return 0.0
    hops = 2 * math.ceil(math.log2(devices))
    return hops * latency + 2 * (devices - 1) / devices * size / bandwidth


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Hosts of several devices each.

    Attributes:
        hosts: How many.
        devices: Of each host.
        link: Bytes per second that a device sends within a host.
        link_latency: Seconds.
        network: Bytes per second that a host sends.
        network_latency: Seconds.
    """

    hosts: int
    devices: int
    link: float
    link_latency: float
    network: float
    network_latency: float

    def all_reduce(self, size: float) -> float:
        """Seconds of an all-reduce of so many bytes."""
        within = all_reduce(size, self.devices, self.link, self.link_latency)
        return within + all_reduce(size, self.hosts, self.network, self.network_latency)

    def efficiency(
        self, step: float, norms: int, channels: int, parameters: int
    ) -> tuple[float, float]:
        """Share of a step of ``step`` seconds on one device in the step here: least and most."""
        statistics = 2 * norms * self.all_reduce(8 * channels / norms) if norms else 0.0
        gradients = self.all_reduce(4 * parameters)
        left = max(0.0, gradients - 2 / 3 * step)
        return step / (step + statistics + gradients), step / (step + statistics + left)


def sizes(name: str) -> dict[str, int]:
    """Parameters, batch norms and their channels of a model of the registry, in its own size."""
    entry = registry.MODELS[name]
    model = registry.build(name, entry.num_classes, dtype=jnp.float32)
    shape = jax.ShapeDtypeStruct((1, entry.image_size, entry.image_size, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), shape)
    means = [
        leaf
        for path, leaf in traverse_util.flatten_dict(shapes.get("batch_stats", {})).items()
        if path[-1] == "mean"
    ]
    return {
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])),
        "norms": len(means),
        "channels": sum(math.prod(leaf.shape) for leaf in means),
    }


def on_paper(given: Any) -> list[dict[str, Any]]:
    """The efficiencies of all models, steps and clusters."""
    rows = []
    for name in given.models:
        of_model = sizes(name)
        for hosts, count in ((1, 8), (64, 8)):
            links = given.link_gb * 1e9, given.link_us * 1e-6
            network = given.network_gb * 1e9, given.network_us * 1e-6
            cluster = Cluster(hosts, count, *links, *network)
            for step_ms in map(float, given.step_ms):
                least, most = cluster.efficiency(step_ms / 1e3, **of_model)
                facts = {"measured": "paper", "model": name, **of_model, "hosts": hosts}
                facts |= {"devices": hosts * count, "step_ms": step_ms}
                rows.append(facts | {"least": least, "most": most})
    return rows


def communication(step: Step, devices: int) -> dict[str, Any]:
    """What a step exchanges, and what it should."""
    found = exchanges(step.compiled.as_text())
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


def costs(config: ConfigDict, given: Any) -> list[dict[str, Any]]:
    """The step's time on each number of devices, and what is exchanged."""
    built = experiment.build(config)
    state = jax.device_get(built.initial_state())
    counts = [int(count) for count in given.devices if int(count) <= jax.device_count()]
    batches = {
        "per device": {count: given.per_device * count for count in counts},
        "in all": dict.fromkeys(counts, given.batch),
    }
    steps: dict[tuple[int, int], Step] = {}
    for count in counts:
        if given.batch % count:
            raise InputError(f"--batch: {given.batch} given, a multiple of {count} devices wanted")
        for batch in {of_count[count] for of_count in batches.values()}:
            steps[count, batch] = Step(built, state, count, batch)
    ways = {f"{batch} on {count}": step for (count, batch), step in steps.items()}
    took = measure.seconds(ways, repeats=given.repeats, least=given.least)
    rows: list[dict[str, Any]] = []
    for fixed, of_count in batches.items():
        for count, batch in of_count.items():
            seconds = took[f"{batch} on {count}"]
            facts = {"measured": "cost", "fixed": fixed, "devices": count, "batch": batch}
            facts |= {f"{name}_ms": 1e3 * seconds[name] for name in ("median", "min", "max")}
            one = next(row for row in [*rows, facts] if row["fixed"] == fixed)
            facts["per_image"] = facts["median_ms"] / batch / (one["median_ms"] / one["batch"])
            rows.append(facts)
    return rows + [communication(steps[count, given.batch], count) for count in counts]


def table(result: Mapping[str, Any]) -> str:
    """Markdown: the costs, the communication, and what it makes on paper."""
    rows = result["rows"]
    lines = [
        f"The step of `attention_cnn` on images of {result['size']}×{result['size']}. Per image: "
        "the time of a step by its images, relative to one device; devices that share a CPU's "
        "cores cannot go below 1 for long, real ones go down to 1 / devices.",
        "",
        "| fixed batch | devices | images | ms per step | lowest to highest | per image |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["measured"] == "cost":
            cells = [row["fixed"], str(row["devices"]), str(row["batch"])]
            cells += [f"{row['median_ms']:.1f}", f"{row['min_ms']:.1f} to {row['max_ms']:.1f}"]
            lines.append(f"| {' | '.join(cells)} | {row['per_image']:.2f} |")
    lines += ["", "Bytes exchanged in a step, found in the compiled program / counted by hand:", ""]
    lines += [f"| devices | instructions | {STATISTICS} | {GRADIENTS} | {METRICS} | |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in rows:
        if row["measured"] == "communication":
            kinds = ", ".join(f"{n} {kind}" for kind, n in row["instructions"].items()) or "none"
            cells = [f"{row['bytes'][p]:,} / {row['by_hand'][p]:,}" for p in row["bytes"]]
            verdict = "equal" if row["bytes"] == row["by_hand"] else "**different**"
            lines.append(f"| {row['devices']} | {kinds} | {' | '.join(cells)} | {verdict} |")
    links = result["links"]
    lines += [
        "",
        "On paper, not measured: the efficiency of hosts with 8 devices each, at a fixed batch per "
        f"device, with {links['link_gb']:g} GB/s and {links['link_us']:g} µs between devices, "
        f"{links['network_gb']:g} GB/s per host and {links['network_us']:g} µs between hosts. "
        "From: the gradients are waited for; to: their all-reduce runs beside the backward pass.",
        "",
        "| model | parameters | batch norms | devices | step on one, ms | efficiency |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["measured"] == "paper":
            cells = [row["model"], f"{row['parameters']:,}", str(row["norms"]), str(row["devices"])]
            cells += [f"{row['step_ms']:g}", f"{row['least']:.1%} to {row['most']:.1%}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    given = flags.FLAGS
    if given.smoke:
        for name, value in TOY.items():
            given[name].value = value
    devices.split_cpu(max(int(count) for count in given.devices))
    config = base()
    config.dataset.update(image_size=given.size, num_images=210)
    config.model.width = given.width
    config.batch_size = config.evaluation.batch_size = given.batch
    config.loader.name = "resident"
    links = {name: given[name].value for name in ("link_gb", "link_us", "network_gb", "network_us")}
    result = {"size": given.size, "links": links}
    rows = costs(config, given) + on_paper(given)
    path = measure.write(NAME, rows, **result)
    print(table(result | {"rows": rows}), end="")
    print(f"written to {path}")


if __name__ == "__main__":
    flags.DEFINE_list(
        "devices", ["1", "2", "4", "8"], "Numbers of devices; what there are of them."
    )
    flags.DEFINE_integer("per_device", 8, "Images of each device, where they are fixed.")
    flags.DEFINE_integer("batch", 64, "Images in all, where they are fixed.")
    flags.DEFINE_integer("size", 64, "Height and width of the images.")
    flags.DEFINE_integer("width", 24, "Width of the model.")
    flags.DEFINE_integer("repeats", 7, "Measurements of each step.")
    flags.DEFINE_float("least", 0.5, "Seconds of one measurement at the least.")
    flags.DEFINE_list(
        "models", ["resnet50_sa", "densenet201_sa", "irv2_sa"], "Models of which to say on paper."
    )
    flags.DEFINE_list(
        "step_ms", ["25", "50", "100", "200"], "Milliseconds of a step on one device, on paper."
    )
    flags.DEFINE_float("link_gb", 450.0, "GB/s that a device sends within a host.")
    flags.DEFINE_float("link_us", 2.0, "Microseconds of latency within a host.")
    flags.DEFINE_float("network_gb", 50.0, "GB/s that a host sends.")
    flags.DEFINE_float("network_us", 5.0, "Microseconds of latency between hosts.")
    flags.DEFINE_bool("smoke", False, "Whether to run a toy in seconds.")
    run_main(main)
