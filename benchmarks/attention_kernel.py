"""Soft-Attention by itself, forward and backward, at the shapes of all models that have it.

Ours (``jaxattn.ops.soft_attention``) against the Keras layer of the same variant (as released, or
the paper's equation with Keras' 2-D convolution), on JAX and on TensorFlow in processes of their
own, and against the definition in plain JAX (the literal 3-D or 2-D convolution). All take turns,
so that other load on the machine affects all, and all keep freed memory, as our training does.

    python -m benchmarks.attention_kernel [--batches=16,64] [--dtypes=float32,bfloat16]

Before a row is timed, all results are compared: attended features and the gradients of features and
kernel, each as the largest difference from the definition relative to its largest element. A peer
that differs by more than the bound is marked ≠. TensorFlow's CPU kernels compute the released
layer's unusual convolution wrongly for most shapes (they read other channels, see
``references/keras_models.py``); the time that this takes them counts all the same.

**Limit**: the larger of bytes to move over bandwidth, and operations over speed, both measured just
before: by adding large arrays, and by a large matrix product in the row's type. Bytes
(`least_bytes`): the forward pass reads and writes the features once; forward and backward together
read them twice and write them, and read and write their gradient, as in training, where the
backward pass starts only after the later layers are done. Small shapes fit into a CPU's caches and
can beat this limit.

On an accelerator, a call may be shorter than its dispatch. Calls are queued, which hides most of
that; the share of the limit there comes from several calls in one dispatch, each on the result of
the one before (`chained`).

Rows of other shapes, batches and types from earlier runs on the same machine are kept.
"""

import contextlib
import functools
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import measure, tables
from benchmarks.process import Process, Timed, Unavailable
from jaxattn.errors import invalid
from jaxattn.ops import soft_attention as ops

PASSES = ("forward", "both")
#: On an accelerator, calls are chained until they take at least this many seconds at the limit.
DISPATCH = 2e-4
#: For the peers' processes, what `jaxattn.runtime` sets for ours: keep freed memory.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

Params = tuple[jax.Array, jax.Array]
Attend = Callable[[jax.Array, Params], jax.Array]


class Case(NamedTuple):
    """What a row measures, but for the pass.

    Attributes:
        variant: ``'released'`` or ``'paper'``.
        shape: H, W, C and K.
        batch: Number of images.
        dtype: Type of the features; parameters are float32.
    """

    variant: str
    shape: tuple[int, int, int, int]
    batch: int
    dtype: str

    def inputs(self) -> dict[str, np.ndarray]:
        """Features, kernel, bias or γ, and cotangent, float32, exact in the case's type.

        Logits have a standard deviation of .8 around a bias of ±6, away from the ReLU's kink, where
        a rounding error would change a gradient and results could not be compared.
        """
        height, _, channels, heads = self.shape
        rng = np.random.default_rng(0)
        x, cotangent = (
            np.asarray(jnp.asarray(rng.normal(size=(self.batch, *self.shape[:3])), self.dtype))
            for _ in range(2)
        )
        size: tuple[int, ...]
        if self.variant == "released":
            size, terms = (channels, 3, 3, 1, heads), 9 * height
            other = np.where(np.arange(heads) % 2, -6.0, 6.0)
        else:
            size, terms = (3, 3, channels, heads), 9 * channels
            other = np.asarray(0.7)
        kernel = rng.normal(size=size) * 0.8 / math.sqrt(terms)
        found = {"x": x, "kernel": kernel, "other": other, "cotangent": cotangent}
        return {name: each.astype(np.float32) for name, each in found.items()}


def ours(variant: str) -> Attend:
    """Attended features by our operation."""
    released = variant == "released"
    operation: Any = ops.released_soft_attention if released else ops.paper_soft_attention
    return lambda x, params: operation(x, *params)[0]


def definition(variant: str) -> Attend:
    """Attended features by the equations, with the convolution that they name."""

    def attend(x: jax.Array, params: Params) -> jax.Array:
        kernel, other = params
        if variant == "released":
            logits = jax.nn.relu(ops.released_logits_conv3d(x, kernel) + other[:, None, None])
            weights = ops.position_softmax(logits).sum(1)
        else:
            dimensions = ("NHWC", "HWIO", "NHWC")
            logits = lax.conv_general_dilated(
                x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=dimensions
            )
            weights = other * ops.position_softmax(logits.transpose(0, 3, 1, 2)).sum(1)
        return (x * weights[..., None]).astype(x.dtype)

    return attend


def both(attend: Attend) -> Callable[..., tuple[jax.Array, jax.Array, Params]]:
    """Forward and backward: attended features, and the gradients of features and parameters."""

    def run(x: jax.Array, params: Params, cotangent: jax.Array) -> Any:
        attended, pullback = jax.vjp(attend, x, params)
        # In training, the cotangent exists only after the forward pass.
        attended, cotangent = lax.optimization_barrier((attended, cotangent))
        return attended, *pullback(cotangent)

    return run


def chained(attend: Attend, what: str, calls: int) -> Callable[..., Any]:
    """Several calls in one dispatch, none of which can be dropped or merged with another.

    Each call attends to the result of the one before; with the backward pass, its cotangent is the
    gradient of the one before, and its parameters have taken a gradient step.
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
    """Bytes that a pass must move: features and gradients as described above, and the kernel.

    Only the 2H - 1 rows of the released kernel that meet data are read, but its whole gradient is
    written.
    """
    height, width, channels, heads = case.shape
    features = case.batch * height * width * channels * jnp.dtype(case.dtype).itemsize
    whole = 9 * channels * heads * 4
    read = 9 * min(channels, 2 * height - 1) * heads * 4 if case.variant == "released" else whole
    return 2 * features + read if what == "forward" else 5 * features + 2 * read + whole


def least_flops(case: Case, what: str) -> int:
    """Floating-point operations of a pass: convolution taps that meet data, softmax, weighting.

    Per output position and head, the released convolution meets all H rows of 3 channels, the
    paper's 3 rows (2 at the borders) of C; both meet 3 columns (2 at the borders). A tap is a
    multiplication and an addition. The softmax takes a maximum, exponential, sum and quotient, and
    the sum over heads; the weighting a product per feature. The backward pass takes the convolution
    twice (features and kernel), four operations per softmax element, and the weighting three times.
    """
    height, width, channels, heads = case.shape
    columns = 3 * width - 2
    rows = 3 * height * height if case.variant == "released" else channels * (3 * height - 2)
    convolution = 2 * case.batch * heads * rows * columns
    maps = case.batch * height * width * heads
    features = case.batch * height * width * channels
    forward = convolution + 5 * maps + features
    return forward if what == "forward" else forward + 2 * convolution + 4 * maps + 3 * features


def differences(
    results: Mapping[str, Sequence[np.ndarray]],
) -> dict[str, dict[str, float]]:
    """Differences from the definition, relative to the largest element; inf if not finite.

    The gradient of the bias is left out: it is zero, as a softmax is invariant to it.
    """

    def difference(got: np.ndarray, wanted: np.ndarray) -> float:
        found = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        return found if math.isfinite(found) else math.inf

    names = ("attended", "gradient of x", "gradient of kernel")
    return {
        name: dict(zip(names, map(difference, found, results["definition"]), strict=True))
        for name, found in results.items()
        if name != "definition"
    }


def computed(run: Callable[..., Any], arguments: tuple) -> list[np.ndarray]:
    """Attended features and the gradients of features and kernel, with products in full precision.

    On a CPU products always are, so the program is the one that is timed.
    """
    full = jax.default_backend() != "cpu" and arguments[0].dtype == jnp.float32
    with jax.default_matmul_precision("highest") if full else contextlib.nullcontext():
        attended, to_x, (to_kernel, _) = run(*arguments)
    return [np.asarray(each, np.float32) for each in (attended, to_x, to_kernel)]


class Ready(NamedTuple):
    """A case whose results were compared.

    Attributes:
        ways: By pass, what can be timed.
        arguments: Features, parameters and cotangent.
        differences: See `differences`.
        skipped: Why a peer is missing.
    """

    ways: dict[str, dict[str, Any]]
    arguments: tuple[jax.Array, Params, jax.Array]
    differences: dict[str, dict[str, float]]
    skipped: dict[str, str]


def prepare(case: Case, peers: Mapping[str, Process | str]) -> Ready:
    """Computes a case in every way and compares the results.

    Args:
        case: The case.
        peers: Processes, or why there is none.

    Raises:
        InputError: Ours differs from the definition by more than the bound.
    """
    inputs = case.inputs()
    x, cotangent = (jnp.asarray(inputs[name], case.dtype) for name in ("x", "cotangent"))
    arguments = (x, (jnp.asarray(inputs["kernel"]), jnp.asarray(inputs["other"])), cotangent)
    results, skipped = {}, {}
    ways: dict[str, dict[str, Any]] = {what: {} for what in PASSES}
    for name, attend in {
        "ours": ours(case.variant),
        "definition": definition(case.variant),
    }.items():
        run = {"forward": jax.jit(attend), "both": jax.jit(both(attend))}
        results[name] = computed(run["both"], arguments)
        ways["forward"][name] = functools.partial(run["forward"], *arguments[:2])
        ways["both"][name] = functools.partial(run["both"], *arguments)
    for name, peer in peers.items():
        try:
            if isinstance(peer, str):
                raise Unavailable(peer)
            question = {"variant": case.variant, "dtype": case.dtype, "inputs": inputs}
            results[name] = peer.ask("compute", **question)
            for what in PASSES:
                ways[what][name] = Timed(peer, {"what": what})
        except Unavailable as error:  # it may also need too much memory
            skipped[name] = str(error)
    apart, bound = differences(results), tables.LAYER_BOUNDS[case.dtype]
    if not max(apart["ours"].values()) <= bound:
        raise invalid(str(case), f"at most {bound} from the definition", apart["ours"])
    return Ready(ways, arguments, apart, skipped)


def measured(
    case: Case, peers: Mapping[str, Process | str], limits: Mapping[str, Any], repeats: int
) -> list[dict[str, Any]]:
    """The rows of a case: the forward pass, and both passes.

    Args:
        case: The case.
        peers: Processes, or why there is none.
        limits: See `measure.limits`.
        repeats: Number of measurements of each way.
    """
    all_ways, arguments, apart, skipped = prepare(case, peers)
    rows = []
    for what, ways in all_ways.items():
        moved, operations = least_bytes(case, what), least_flops(case, what)
        bandwidth, speed = limits["bytes_per_second"], limits["flops_per_second"][case.dtype]
        limit = max(moved / bandwidth, operations / speed)
        calls = 1
        if jax.default_backend() != "cpu":
            calls = min(max(math.ceil(DISPATCH / limit), 1), 16)
        if calls > 1:
            several = jax.jit(chained(ours(case.variant), what, calls))
            ways["chained"] = functools.partial(several, *arguments)
        seconds = measure.seconds(ways, repeats=repeats, least=0.02)
        mine = seconds["ours"]["median"]
        alone = seconds["chained"]["median"] / calls if calls > 1 else mine
        speedup = {n: seconds[n]["median"] / mine for n in tables.LAYERS if n in seconds}
        rows.append(
            {
                **case._asdict(),
                "shape": list(case.shape),
                "pass": what,
                "bytes": moved,
                "flops": operations,
                "limit": limit,
                "of_limit": limit / alone,
                "bytes_per_second": bandwidth,
                "flops_per_second": speed,
                "chained": calls,
                "differences": apart,
                "seconds": seconds,
                "speedup": speedup,
                "skipped": skipped,
            }
        )
    return rows


def parsed(shape: str) -> tuple[int, int, int, int]:
    """``HxWxCxK`` as numbers.

    Raises:
        InputError: It is something else.
    """
    parts = shape.split("x")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) for part in parts):
        raise invalid("--shapes", "HEIGHTxWIDTHxCHANNELSxHEADS", repr(shape))
    height, width, channels, heads = map(int, parts)
    return height, width, channels, heads


def run(
    shapes: tuple[str, ...] = tables.SHAPES,
    batches: tuple[int, ...] = (),
    dtypes: tuple[str, ...] = ("float32",),
    repeats: int = 5,
    tensorflow_python: str = sys.executable,
) -> None:
    """Measures all cases and writes their rows.

    Args:
        shapes: Height, width, channels and heads of the features, such as 8x8x192x16.
        batches: Batch sizes; by default 16 on a CPU, 16 to 512 on an accelerator.
        dtypes: Types of the features, float32 or bfloat16.
        repeats: Number of measurements of each way.
        tensorflow_python: An interpreter with TensorFlow and Keras; empty for none.
    """
    on_cpu = jax.default_backend() == "cpu"
    batches = batches or ((16,) if on_cpu else (256, 64, 16, 512))
    parsed_shapes = [parsed(shape) for shape in shapes]
    limits = measure.limits(dtypes)
    with contextlib.ExitStack() as stack:
        peers: dict[str, Process | str] = {}
        for name, python in {
            "keras_jax": sys.executable,
            "keras_tensorflow": tensorflow_python,
        }.items():
            env = {"KERAS_BACKEND": name.removeprefix("keras_"), **KEEP_MEMORY}
            try:
                process = Process(python, "benchmarks.peers.keras_attention", **env)
                peers[name] = stack.enter_context(process)
            except Unavailable as reason:
                peers[name] = str(reason)
        rows: list[dict[str, Any]] = []
        for batch, shape, dtype, variant in itertools.product(
            batches, parsed_shapes, dtypes, ("released", "paper")
        ):
            rows += measured(Case(variant, shape, batch, dtype), peers, limits, repeats)
            # Written after each case, so that a run that is cut off leaves its results.
            of = ("variant", "shape", "batch", "dtype", "pass")
            platform = jax.default_backend()
            result = measure.write("attention_kernel", rows, case=of, platform=platform)
            latest = tables.attention_kernel(result | {"rows": rows[-2:]})
            print("\n".join(latest.splitlines()[2:4]), flush=True)


if __name__ == "__main__":
    measure.command_line(run)
