"""Soft-Attention itself, forward and backward, at the shapes of all models that have it.

Ours (``jaxattn.ops.soft_attention``) against the Keras layer of the same semantics (the released
one as published, the paper's equation with Keras' 2-D convolution), on the JAX backend in the same
process and on TensorFlow in another, and against the definition in plain JAX (the literal 3-D or
2-D convolution). All are timed in turn, so that what else the machine does hits all, and all keep
memory that they have freed, as our training does.

    python benchmarks/attention_kernel.py [--batches=16,64] [--dtypes=float32,bfloat16]

Before a row is timed, all compute it: attended features and, of the backward pass, the gradients of
features and kernel, each element's difference from the definition relative to the largest one. A
peer that differs by more than the bound is shown by ≠. The released layer's odd convolution is one
that TensorFlow's CPU kernels compute wrongly for most shapes (they read other channels, see
``peers/keras_models.py``); the time that this takes them still counts.

**Limit**: the longer of the bytes that must be moved by the bandwidth, and the operations by the
speed, both measured on the device just before: of an addition of large arrays, and of a large
matrix product of the row's type. Bytes (`least_bytes`): forward, features are read and written
once; forward and backward, features are read twice and written, their gradient read and written, as
in training, where the backward pass cannot begin before the next layers are done. Small shapes fit
into a CPU's caches, and can be faster than this limit.

On an accelerator a call may be shorter than its dispatch. Calls are queued, which hides most of
that; what stands beside the limit there are several calls in one dispatch, each on what the one
before returned (`chained`).

Rows of other shapes, batches and types that an earlier run on the same machine has written stay.
"""

import contextlib
import functools
import itertools
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from benchmarks import measure
from benchmarks.peers.elsewhere import Process, Unavailable
from jaxattn.errors import InputError
from jaxattn.cli import run_main
from jaxattn.ops import soft_attention as ops
from jaxattn.runtime import memory

NAME = "attention_kernel"
#: Height, width, channels and heads: of Inception-ResNet-v2 as released and as in the paper,
#: DenseNet-201 and ResNet-50, ResNet-34 and VGG-16, the 12×12 variant, and Köfler's CNN.
SHAPES = (
    "8x8x192x16",
    "8x8x2080x16",
    "7x7x128x16",
    "7x7x2048x16",
    "28x28x128x16",
    "28x28x512x16",
    "12x12x160x16",
    "8x8x512x12",
)
PASSES = {"forward": "forward", "both": "forward + backward"}
#: Largest difference from the definition, relative to the largest element.
BOUNDS = {"float32": 1e-4, "bfloat16": 5e-2}
#: Goals: times the Keras layer's speed, released, forward and backward.
CPU_GOAL, GPU_GOAL = 10, 50
#: Goal: share of the limit on a GPU, both semantics, at this shape and batch.
LIMIT_GOAL, LIMIT_AT = 0.8, ([28, 28, 512, 16], 256)
#: On an accelerator, calls are chained until they take at least so many seconds at the limit.
DISPATCH = 2e-4
KERAS = {"keras_jax": "Keras, JAX", "keras_tensorflow": "Keras, TensorFlow"}
PEERS = {"definition": "plain JAX", **KERAS}
#: What `memory.keep` does, for the process of TensorFlow.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

Params = tuple[jax.Array, jax.Array]
Attend = Callable[[jax.Array, Params], jax.Array]


class Case(NamedTuple):
    """One row, but for the pass.

    Attributes:
        semantics: ``'released'`` or ``'paper'``.
        shape: H, W, C and K.
        batch: Number of images.
        dtype: Of the features; parameters are float32.
    """

    semantics: str
    shape: tuple[int, int, int, int]
    batch: int
    dtype: str

    def inputs(self) -> dict[str, np.ndarray]:
        """Features, kernel, bias or γ, and cotangent, float32, exact in the case's type.

        Logits have a deviation of .8 about a bias of ±6, clear of the ReLU's kink: there a rounding
        error would change a gradient, and results could not be compared.
        """
        height, _, channels, heads = self.shape
        rng = np.random.default_rng(0)
        x, cotangent = (
            np.asarray(jnp.asarray(rng.normal(size=(self.batch, *self.shape[:3])), self.dtype))
            for _ in range(2)
        )
        if self.semantics == "released":
            size, terms = (channels, 3, 3, 1, heads), 9 * height
            other = np.where(np.arange(heads) % 2, -6.0, 6.0)
        else:
            size, terms = (3, 3, channels, heads), 9 * channels
            other = np.asarray(0.7)
        kernel = rng.normal(size=size) * 0.8 / math.sqrt(terms)
        found = {"x": x, "kernel": kernel, "other": other, "cotangent": cotangent}
        return {name: each.astype(np.float32) for name, each in found.items()}


def ours(semantics: str) -> Attend:
    """Attended features by our operation."""
    operation = {
        "released": ops.released_soft_attention,
        "paper": ops.paper_soft_attention,
    }[semantics]
    return lambda x, params: operation(x, *params)[0]


def definition(semantics: str) -> Attend:
    """Attended features as the equations have them, with the convolution that they name."""

    def attend(x: jax.Array, params: Params) -> jax.Array:
        if semantics == "released":
            kernel, bias = params
            logits = ops.released_logits_conv3d(x, kernel)
            weights = ops.position_softmax(jax.nn.relu(logits + bias[:, None, None])).sum(1)
        else:
            kernel, gamma = params
            logits = lax.conv_general_dilated(
                x,
                kernel.astype(x.dtype),
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            weights = gamma * ops.position_softmax(logits.transpose(0, 3, 1, 2)).sum(1)
        return (x * weights[..., None]).astype(x.dtype)

    return attend


def keras_jax(case: Case) -> Attend:
    """Attended features by the Keras layer on its JAX backend."""
    try:
        import keras
    except ModuleNotFoundError as error:
        raise Unavailable(str(error)) from error
    if keras.backend.backend() != "jax":
        raise Unavailable(f"the backend of Keras here is {keras.backend.backend()}")
    from benchmarks.peers import keras_attention

    shape = (case.batch, *case.shape[:3])
    layer = keras_attention.layer(case.semantics, shape, case.shape[3], case.dtype)
    return lambda x, params: layer.stateless_call(list(params), [], x)[0][0]


class Elsewhere(NamedTuple):
    """A pass of the peer in another process, which measures itself."""

    peer: Process
    what: str

    def time(self, calls: int) -> float:
        """Mean seconds of so many calls in a row."""
        return self.peer.ask(time=self.what, calls=calls)


def both(attend: Attend) -> Callable[..., tuple[jax.Array, jax.Array, Params]]:
    """Forward and backward: attended features, and the gradients of features and parameters."""

    def run(x: jax.Array, params: Params, cotangent: jax.Array) -> Any:
        attended, pullback = jax.vjp(attend, x, params)
        # In training the cotangent exists only after the forward pass.
        attended, cotangent = lax.optimization_barrier((attended, cotangent))
        return attended, *pullback(cotangent)

    return run


def jitted(attend: Attend) -> dict[str, Callable[..., Any]]:
    """Its two passes, compiled when they are first called."""
    return {"forward": jax.jit(attend), "both": jax.jit(both(attend))}


def chained(attend: Attend, what: str, calls: int) -> Callable[..., Any]:
    """Several calls in one dispatch, none of which can be left out or merged with another.

    Forward, the next one attends to what this one returned. Backward too, its cotangent is the
    gradient of this one, and its parameters have taken a step of descent.
    """

    def run(x: jax.Array, params: Params, cotangent: jax.Array) -> Any:
        results = []
        for _ in range(calls):
            if what == "forward":
                x = attend(x, params)
                continue
            attended, cotangent, gradients = both(attend)(x, params, cotangent)
            params = jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradients)
            results.append(attended)
        return x, cotangent, params, results

    return run


def least_bytes(case: Case, what: str) -> int:
    """Bytes that must be moved: features and gradients as the module says, and the kernel.

    Of the released kernel only the 2H - 1 rows that meet data are read, but a gradient of the whole
    is written.
    """
    height, width, channels, heads = case.shape
    features = case.batch * height * width * channels * jnp.dtype(case.dtype).itemsize
    whole = 9 * channels * heads * 4
    read = 9 * min(channels, 2 * height - 1) * heads * 4 if case.semantics == "released" else whole
    return 2 * features + read if what == "forward" else 5 * features + 2 * read + whole


def least_flops(case: Case, what: str) -> int:
    """Floating-point operations: the convolution's taps that meet data, the softmax, the weighing.

    Per output position and head the released convolution meets all H rows of 3 channels, the
    paper's 3 rows (2 at the borders) of C; both 3 columns (2 at the borders). Each is a
    multiplication and an addition. Softmax: maximum, exponential, sum and quotient, and the sum
    over heads. Weighing: a product per feature. Backward the convolution counts twice (features and
    kernel), the softmax four per element, the weighing three.
    """
    height, width, channels, heads = case.shape
    columns = 3 * width - 2
    rows = 3 * height * height if case.semantics == "released" else channels * (3 * height - 2)
    convolution = 2 * case.batch * heads * rows * columns
    maps = case.batch * height * width * heads
    features = case.batch * height * width * channels
    forward = convolution + 5 * maps + features
    return forward if what == "forward" else forward + 2 * convolution + 4 * maps + 3 * features


def roofline(dtypes: Iterable[str], smoke: bool) -> dict[str, Any]:
    """Bytes per second of adding one large array to another, and operations per second of products.

    Products are in the precision that JAX takes by default: on recent GPUs TF32 for float32.
    """
    large = jax.default_backend() != "cpu"
    size, side = (2**28, 8192) if large else (2**26, 2048)
    if smoke:
        size, side = 2**18, 128
    total, other = (jnp.full(size, each, jnp.float32) for each in (0.0, 1e-3))
    add = jax.jit(jnp.add, donate_argnums=0)  # In place: new memory has a price of its own.

    def added() -> jax.Array:
        nonlocal total
        total = add(total, other)
        return total

    ways: dict[str, Callable[[], Any]] = {"add": added}
    for dtype in dtypes:
        matrix = jnp.full((side, side), 1 / side, dtype)
        ways[dtype] = functools.partial(jax.jit(jnp.matmul), matrix, matrix)
    taken = measure.seconds(ways, repeats=5, least=0.02 if large else 0.0)
    return {
        "bytes_per_second": 3 * 4 * size / taken["add"]["min"],
        "flops_per_second": {each: 2 * side**3 / taken[each]["min"] for each in dtypes},
    }


def difference(got: Any, wanted: Any) -> float:
    """The largest difference of an element relative to the largest element; inf if not finite."""
    got, wanted = (np.asarray(each, np.float32) for each in (got, wanted))
    found = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    return found if math.isfinite(found) else math.inf


def differences(results: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, float]]:
    """Of each way's attended features and gradients from the definition's.

    The gradient of the bias is left out: it is zero, since a softmax does not change with it.
    """
    return {
        name: {
            what: difference(mine, wanted)
            for what, mine, wanted in zip(
                ("attended", "gradient of x", "gradient of kernel"),
                found,
                results["definition"],
                strict=False,
            )
        }
        for name, found in results.items()
        if name != "definition"
    }


def computed(run: Callable[..., Any], arguments: tuple) -> list[np.ndarray]:
    """Attended features, the gradients of features and kernel; products in full precision.

    On a CPU they are always, and so the program is the one that is timed.
    """
    full = jax.default_backend() != "cpu" and arguments[0].dtype == jnp.float32
    with jax.default_matmul_precision("highest") if full else contextlib.nullcontext():
        attended, to_x, (to_kernel, _) = run(*arguments)
    return [np.asarray(each, np.float32) for each in (attended, to_x, to_kernel)]


def computed_elsewhere(peer: Process, case: Case, inputs: Mapping[str, Any]) -> list[np.ndarray]:
    """Likewise in another process, which is ready to be timed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/inputs.npz", **inputs)
        peer.ask(
            inputs=f"{folder}/inputs.npz",
            outputs=f"{folder}/outputs.npz",
            semantics=case.semantics,
            dtype=case.dtype,
        )
        with np.load(f"{folder}/outputs.npz") as file:
            return [file[f"arr_{i}"] for i in range(3)]


class Ready(NamedTuple):
    """What can be timed of a case, all of it checked.

    Attributes:
        runs: Forward and forward + backward, compiled, of each way in this process, by name.
        arguments: Features, parameters and cotangent.
        differences: See `differences`.
        skipped: Why a peer is missing.
    """

    runs: dict[str, dict[str, Callable[..., Any]]]
    arguments: tuple[jax.Array, Params, jax.Array]
    differences: dict[str, dict[str, float]]
    skipped: dict[str, str]


def ready(case: Case, peer: Process | str) -> Ready:
    """Computes a case in every way and compares.

    Args:
        case: What to compute.
        peer: TensorFlow's process, or why there is none.

    Returns:
        What can be timed.

    Raises:
        InputError: Ours differs from the definition by more than the bound.
    """
    inputs = case.inputs()
    x, cotangent = (jnp.asarray(inputs[name], case.dtype) for name in ("x", "cotangent"))
    params = (jnp.asarray(inputs["kernel"]), jnp.asarray(inputs["other"]))
    arguments = (x, params, cotangent)
    runs = {"ours": jitted(ours(case.semantics)), "definition": jitted(definition(case.semantics))}
    results = {name: computed(run["both"], arguments) for name, run in runs.items()}
    skipped = {}
    try:
        run = jitted(keras_jax(case))
        results["keras_jax"] = computed(run["both"], arguments)
        runs["keras_jax"] = run
    except (Unavailable, jax.errors.JaxRuntimeError) as error:  # It may need too much memory.
        skipped["keras_jax"] = str(error).splitlines()[0]
    try:
        if isinstance(peer, str):
            raise Unavailable(peer)
        results["keras_tensorflow"] = computed_elsewhere(peer, case, inputs)
    except Unavailable as error:
        skipped["keras_tensorflow"] = str(error)
    apart = differences(results)
    if not max(apart["ours"].values()) <= BOUNDS[case.dtype]:
        raise InputError(f"{case}: ours differs from the definition: {apart['ours']}")
    return Ready(runs, arguments, apart, skipped)


def measured(
    case: Case, peer: Process | str, limits: Mapping[str, Any], repeats: int
) -> list[dict]:
    """The rows of a case: forward, and forward and backward.

    Args:
        case: What to compute.
        peer: TensorFlow's process, or why there is none.
        limits: See `roofline`.
        repeats: How often each way is timed.

    Returns:
        Two rows: the case, the pass, differences from the definition, seconds of each way, and the
        limit.
    """
    runs, arguments, apart, skipped = ready(case, peer)
    rows = []
    for what in PASSES:
        given = arguments[:2] if what == "forward" else arguments
        ways: dict[str, Any] = {
            name: functools.partial(run[what], *given) for name, run in runs.items()
        }
        if isinstance(peer, Process) and "keras_tensorflow" not in skipped:
            ways["keras_tensorflow"] = Elsewhere(peer, what)
        moved, operations = least_bytes(case, what), least_flops(case, what)
        limit = max(
            moved / limits["bytes_per_second"],
            operations / limits["flops_per_second"][case.dtype],
        )
        calls = 1
        if jax.default_backend() != "cpu":
            calls = min(max(math.ceil(DISPATCH / limit), 1), 16)
        if calls > 1:
            several = jax.jit(chained(ours(case.semantics), what, calls))
            ways["chained"] = functools.partial(several, *arguments)
        seconds = measure.seconds(ways, repeats=repeats, least=0.02)
        alone = seconds["chained"]["median"] / calls if calls > 1 else seconds["ours"]["median"]
        rows.append(
            {
                **case._asdict(),
                "shape": list(case.shape),
                "pass": what,
                "bytes": moved,
                "flops": operations,
                "limit": limit,
                "of_limit": limit / alone,
                "bytes_per_second": limits["bytes_per_second"],
                "flops_per_second": limits["flops_per_second"][case.dtype],
                "chained": calls,
                "differences": apart,
                "seconds": seconds,
                "speedup": {
                    name: seconds[name]["median"] / seconds["ours"]["median"]
                    for name in PEERS
                    if name in seconds
                },
                "skipped": skipped,
            }
        )
    return rows


def goals(result: Mapping[str, Any]) -> list[measure.Goal]:
    """The goals that hold for its rows."""
    return [goal for row in ordered(result["rows"]) for goal in _goals(row, result["platform"])]


def _goals(row: Mapping[str, Any], platform: str) -> list[measure.Goal]:
    found = []
    on_gpu = platform != "cpu"
    case = f"{_shape(row)}, batch {row['batch']}, {row['dtype']}"
    if row["pass"] == "both" and row["semantics"] == "released":
        wanted = GPU_GOAL if on_gpu else CPU_GOAL
        if ratios := [row["speedup"][name] for name in KERAS if name in row["speedup"]]:
            reached = min(ratios) >= wanted
            found.append(measure.Goal(f"{wanted}× Keras", case, min(ratios), reached))
    if on_gpu and (row["shape"], row["batch"]) == LIMIT_AT:
        case = f"{row['semantics']}, {PASSES[row['pass']]}, {case}"
        what = f"{LIMIT_GOAL:.0%} of the limit"
        share = row["of_limit"]
        found.append(measure.Goal(what, case, share, share >= LIMIT_GOAL))
    return found


def ordered(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """By batch, shape, type, semantics and pass."""
    names = [list(parsed(shape)) for shape in SHAPES]
    return sorted(
        rows,
        key=lambda row: (
            row["batch"],
            names.index(row["shape"]) if row["shape"] in names else len(names),
            row["shape"],
            row["dtype"],
            row["semantics"] == "paper",
            row["pass"] == "both",
        ),
    )


def _shape(row: Mapping[str, Any]) -> str:
    height, width, channels, heads = row["shape"]
    return f"{height}×{width}×{channels}, {heads}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _cells(row: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    taken = row["seconds"]["ours"]
    cells = [
        f"{row['semantics']}, {PASSES[row['pass']]}",
        _shape(row),
        f"{row['batch']}, {row['dtype']}",
        f"{_milliseconds(taken['median'])} ({_milliseconds(taken['min'])}–"
        f"{_milliseconds(taken['max'])})",
    ]
    for name in PEERS:
        if name not in row["seconds"]:
            cells.append("–")
            continue
        differs = max(row["differences"].get(name, {"": 0.0}).values()) > BOUNDS[row["dtype"]]
        median = _milliseconds(row["seconds"][name]["median"])
        cells.append(f"{median} = {row['speedup'][name]:.1f}×{' ≠' if differs else ''}")
    cells.append(f"{_milliseconds(row['limit'])} ({row['of_limit']:.0%})")
    cells.append("; ".join(goal.verdict for goal in _goals(row, result["platform"])))
    return cells


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each case and pass."""
    head = ["", "H×W×C, K", "batch", "ours, ms", *PEERS.values(), "limit, ms", "goal"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    rows = ordered(result["rows"])
    lines += ["| " + " | ".join(_cells(row, result)) + " |" for row in rows]
    bandwidth = measure.span(row["bytes_per_second"] / 1e9 for row in rows)
    speeds = measure.speeds((row["dtype"], row["flops_per_second"]) for row in rows)
    worst = max(max(row["differences"]["ours"].values()) for row in rows)
    lines += [
        "",
        "Ours: median (shortest–longest) of the runs. Peers: median = times ours; ≠: computes "
        "something else. Limit: as above, and in brackets the share of it that ours reaches; "
        f"measured: {bandwidth} GB/s, {speeds}. Ours differs from the definition by at most "
        f"{worst:.1e}.",
    ]
    skipped = {f"{PEERS[n]}: {why}" for row in rows for n, why in row["skipped"].items()}
    lines += [f"Not measured: {'; '.join(sorted(skipped))}."] if skipped else []
    return "\n".join(lines) + "\n"


def parsed(shape: str) -> tuple[int, int, int, int]:
    """``HxWxCxK`` as numbers.

    Raises:
        InputError: It is something else.
    """
    parts = shape.split("x")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"--shapes: {shape!r} given, HEIGHTxWIDTHxCHANNELSxHEADS wanted")
    height, width, channels, heads = map(int, parts)
    return height, width, channels, heads


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    given = flags.FLAGS
    memory.keep()
    on_cpu = jax.default_backend() == "cpu"
    batches = [int(each) for each in given.batches] or ([16] if on_cpu else [256, 64, 16, 512])
    shapes, repeats = [parsed(shape) for shape in given.shapes], given.repeats
    if given.smoke:
        shapes, batches, repeats = [(4, 4, 12, 3)], [2], 2
    limits = roofline(given.dtypes, given.smoke)
    peer: Process | str = "not asked for"
    if given.tensorflow_python:
        script = str(Path(__file__).parent / "peers" / "keras_attention.py")
        try:
            env = {"KERAS_BACKEND": "tensorflow", **KEEP_MEMORY}
            peer = Process([given.tensorflow_python, script], env)
        except Unavailable as reason:
            peer = str(reason)
    platform = jax.default_backend()
    tensorflow = peer.about if isinstance(peer, Process) else peer
    of = ("semantics", "shape", "batch", "dtype", "pass")
    rows: list[dict] = []
    cases = itertools.product(batches, shapes, given.dtypes, ("released", "paper"))
    for batch, shape, dtype, semantics in cases:
        rows += measured(Case(semantics, shape, batch, dtype), peer, limits, repeats)
        # A run that is cut off leaves what it has.
        measure.write(NAME, rows, case=of, platform=platform, tensorflow=tensorflow)
        latest = {"platform": platform, "rows": rows[-2:]}
        print("\n".join(table(latest).splitlines()[2:4]), flush=True)
    if isinstance(peer, Process):
        peer.close()


if __name__ == "__main__":
    flags.DEFINE_list("shapes", list(SHAPES), "Height, width, channels and heads: 8x8x192x16.")
    flags.DEFINE_list("batches", [], "Images in a batch; 16, on an accelerator 16 to 512, without.")
    flags.DEFINE_list("dtypes", ["float32"], "Types of the features: float32, bfloat16.")
    flags.DEFINE_integer("repeats", 5, "How often each way is timed.")
    flags.DEFINE_string(
        "tensorflow_python",
        sys.executable,
        "An interpreter that has TensorFlow and Keras; empty for none.",
    )
    flags.DEFINE_bool("smoke", False, "One tiny shape, to see that all runs.")
    run_main(main)
