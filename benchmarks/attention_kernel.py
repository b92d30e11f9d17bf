"""Soft-Attention by itself, forward and backward, at the shapes of all models that have it.

``benchmarks/README.md`` says what is measured and how.

    python -m benchmarks.attention_kernel [--batches=16,64] [--dtypes=float32,bfloat16]
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import measure, tables
from benchmarks.peers.steps import Ready
from benchmarks.process import Peers, Process
from jaxattn.errors import invalid
from jaxattn.ops import soft_attention as ops

#: Height, width, channels and heads of the attention layers: Inception-ResNet-v2 as released and as
#: in the paper, DenseNet-201 and ResNet-50, ResNet-34 and VGG-16, the 12×12 variant, Köfler's CNN.
SHAPES = (
    *("8x8x192x16", "8x8x2080x16", "7x7x128x16", "7x7x2048x16"),
    *("28x28x128x16", "28x28x512x16", "12x12x160x16", "8x8x512x12"),
)
#: For the peers' processes, what `jaxattn.runtime` sets for ours: keep freed memory.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

PASSES = ("forward", "both")
Params = tuple[jax.Array, jax.Array]
Attend = Callable[[jax.Array, Params], jax.Array]
Differences = dict[str, dict[str, float]]


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


def passes(attend: Attend, what: str) -> Callable[..., Any]:
    """A function of features, parameters and cotangent.

    Returns:
        Attended features and, after the backward pass, the gradients of features and parameters.
    """

    def run(x: jax.Array, params: Params, cotangent: jax.Array) -> Any:
        if what == "forward":
            return attend(x, params)
        attended, pullback = jax.vjp(attend, x, params)
        # In training, the cotangent exists only after the forward pass.
        attended, cotangent = lax.optimization_barrier((attended, cotangent))
        return attended, *pullback(cotangent)

    return run


def least_bytes(case: Case, what: str) -> int:
    """Bytes that a pass must move: features, gradients and the kernel.

    The forward pass reads and writes the features; both read them twice and write them, and read
    and write their gradient. Only the 2H - 1 rows of the released kernel that meet data are read,
    but its whole gradient is written.
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


def differences(results: Mapping[str, Sequence[np.ndarray]]) -> Differences:
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
    """Attended features, and the gradients of features and kernel, with products in full precision.

    On a CPU products always are, so the program is the one that is timed.
    """
    full = jax.default_backend() != "cpu" and arguments[0].dtype == jnp.float32
    with jax.default_matmul_precision("highest") if full else contextlib.nullcontext():
        return [np.asarray(each, np.float32) for each in jax.tree.leaves(run(*arguments))[:3]]


class Pass(NamedTuple):
    """A pass of a peer, as `measure.seconds` expects it."""

    process: Process
    what: str

    def time(self, calls: int) -> float:
        """Mean seconds per call."""
        return self.process.time(calls, what=self.what)


def prepare(case: Case, peers: Peers) -> tuple[dict[str, dict[str, Any]], Differences]:
    """Computes a case in every way and compares the results.

    Args:
        case: The case.
        peers: Keras.

    Returns:
        By pass and name, what can be timed, and the `differences`.

    Raises:
        InputError: Ours differs from the definition by more than the bound.
    """
    inputs, results = case.inputs(), {}
    x, cotangent = (jnp.asarray(inputs[name], case.dtype) for name in ("x", "cotangent"))
    arguments = (x, (jnp.asarray(inputs["kernel"]), jnp.asarray(inputs["other"])), cotangent)
    ways: dict[str, dict[str, Any]] = {what: {} for what in PASSES}
    for name, attend in {"ours": ours, "definition": definition}.items():
        for what in PASSES:
            run = jax.jit(passes(attend(case.variant), what))
            ways[what][name] = Ready(functools.partial(run, *arguments))
        results[name] = computed(run, arguments)
    question = {"variant": case.variant, "dtype": case.dtype, "inputs": inputs}
    for name, facts in peers.prepare(**question).items():
        results[name] = facts["results"]
        for what in PASSES:
            ways[what][name] = Pass(peers.ready[name], what)
    apart, bound = differences(results), tables.LAYER_BOUNDS[case.dtype]
    if not max(apart["ours"].values()) <= bound:
        raise invalid(str(case), f"at most {bound} from the definition", apart["ours"])
    return ways, apart


def measured(
    case: Case, peers: Peers, limits: Mapping[str, Any], repeats: int
) -> Iterator[dict[str, Any]]:
    """The rows of a case: the forward pass, and both passes.

    Args:
        case: The case.
        peers: Keras.
        limits: See `measure.limits`.
        repeats: Number of measurements of each way.
    """
    ways, apart = prepare(case, peers)
    bandwidth, speed = limits["bytes_per_second"], limits["flops_per_second"][case.dtype]
    for what in PASSES:
        limit = max(least_bytes(case, what) / bandwidth, least_flops(case, what) / speed)
        seconds = measure.seconds(ways[what], repeats=repeats, least=0.02)
        mine = seconds["ours"]["median"]
        yield {
            **case._asdict(),
            "shape": list(case.shape),
            "pass": what,
            "limit": limit,
            "of_limit": limit / mine,
            "bytes_per_second": bandwidth,
            "flops_per_second": speed,
            "differences": apart,
            "seconds": seconds,
            "speedup": {n: each["median"] / mine for n, each in seconds.items() if n != "ours"},
            "skipped": peers.skipped,
        }


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
    shapes: tuple[str, ...] = SHAPES,
    batches: tuple[int, ...] = (),
    dtypes: tuple[str, ...] = ("float32",),
    repeats: int = 5,
) -> None:
    """Measures all cases and writes their rows.

    Args:
        shapes: Height, width, channels and heads of the features, such as 8x8x192x16.
        batches: Batch sizes; by default 16 on a CPU, 16 to 512 on an accelerator.
        dtypes: Types of the features, float32 or bfloat16.
        repeats: Number of measurements of each way.
    """
    platform = jax.default_backend()
    batches = batches or ((16,) if platform == "cpu" else (256, 64, 16, 512))
    cases = itertools.product(batches, map(parsed, shapes), dtypes, ("released", "paper"))
    limits = measure.limits(dtypes)
    rows: list[dict[str, Any]] = []
    with Peers(tables.KERAS, "keras_attention", **KEEP_MEMORY) as peers:
        for batch, shape, dtype, variant in cases:
            rows += measured(Case(variant, shape, batch, dtype), peers, limits, repeats)
            # Written after each case, so that a run that is cut off leaves its results.
            of = ("variant", "shape", "batch", "dtype", "pass")
            result = measure.write("attention_kernel", rows, case=of, platform=platform)
            latest = tables.attention_kernel(result | {"rows": rows[-2:]})
            print("\n".join(latest.splitlines()[2:4]), flush=True)


if __name__ == "__main__":
    measure.command_line(run)
