"""Ways to compute SE-ResNeXt-50's 3×3 convolutions of 32 groups, forward and backward.

    python benchmarks/grouped_conv.py [--batch=4]

Compiling is not counted; a time is the shortest of three, of XLA's own way (``plain``) on a CPU,
which takes minutes, of one. ``taps`` is ours.
"""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
from absl import flags
from jax import lax
from jaxtyping import Array

from benchmarks import measure
from jaxattn.cli import run_main
from jaxattn.ops.conv import conv_general_dilated
from jaxattn.ops.cpu.grouped_conv import by_taps

NAME = "grouped_conv"
GROUPS = 32
#: Side of the input, channels, stride: each resolution of the network and the first way down.
SHAPES = ((56, 128, 1), (56, 256, 2), (28, 256, 1), (14, 512, 1), (7, 1024, 1))
PADDING = ((1, 1), (1, 1))


def plain(x: Array, kernel: Array, stride: int) -> Array:
    """``lax.conv_general_dilated`` with groups."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        PADDING,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=GROUPS,
    )


def diagonal(x: Array, kernel: Array, stride: int) -> Array:
    """A plain convolution whose kernel is zero between the groups."""
    split = kernel.reshape(3, 3, kernel.shape[2], GROUPS, -1)
    own = jnp.eye(GROUPS, dtype=kernel.dtype)
    dense = jnp.einsum("hwcgd,kg->hwkcgd", split, own).reshape(3, 3, x.shape[-1], -1)
    return conv_general_dilated(x, dense, (stride, stride), PADDING)


def windows(x: Array, kernel: Array, stride: int) -> Array:
    """One product in batches over the groups, of all places' windows (im2col)."""
    padded = jnp.pad(x, ((0, 0), *PADDING, (0, 0)))
    side = (x.shape[1] - 1) // stride + 1
    reach = (side - 1) * stride + 1
    met = jnp.stack(
        [
            padded[:, i : i + reach : stride, j : j + reach : stride].reshape(
                -1, GROUPS, kernel.shape[2]
            )
            for i in range(3)
            for j in range(3)
        ]
    )
    per_tap = kernel.reshape(9, kernel.shape[2], GROUPS, -1)
    y = jnp.einsum("tngc,tcgd->gnd", met, per_tap).swapaxes(0, 1)
    return y.reshape(len(x), side, side, -1)


def taps(x: Array, kernel: Array, stride: int) -> Array:
    """One product in batches over the groups for each place in the window: ours."""
    return by_taps(x, kernel, (stride, stride), PADDING, GROUPS)


def timed(way: Callable, shape: tuple[int, int, int], batch: int, repeats: int) -> dict:
    """Milliseconds of a step forward and backward: on the clock, and of all cores together."""
    side, channels, stride = shape
    x = jax.random.normal(jax.random.key(0), (batch, side, side, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels // GROUPS, channels))
    step = (
        jax.jit(
            jax.value_and_grad(lambda x, kernel: jnp.square(way(x, kernel, stride)).sum(), (0, 1))
        )
        .lower(x, kernel)
        .compile()
    )
    times = []
    for _ in range(repeats + (repeats > 1)):  # the first, where there are several, warms up
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(step(x, kernel))
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (min(each[i] for each in times) * 1e3 for i in (0, 1))
    return {"wall_ms": wall, "cpu_ms": cpu}


def line(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    side, channels, stride = row["shape"]
    cells = (f"{way['wall_ms']:.1f} ({way['cpu_ms']:.1f})" for way in row["ways"].values())
    ratio = row["ways"]["plain"]["wall_ms"] / row["ways"]["taps"]["wall_ms"]
    return f"| {side}×{side}×{channels}, {stride} | {' | '.join(cells)} | {ratio:.3g}× |"


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each shape, a column for each way."""
    head = [f"input × {result['batch']}, stride", *result["rows"][0]["ways"], "plain / taps"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += [line(row) for row in result["rows"]]
    lines += ["", "Float32, milliseconds on the clock (and of all cores together)."]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    batch, smoke = flags.FLAGS.batch, flags.FLAGS.smoke
    on_cpu = jax.default_backend() == "cpu"
    rows = []
    for shape in ((4, 64, 1),) if smoke else SHAPES:
        ways = {
            way.__name__: timed(way, shape, batch, 1 if on_cpu and way is plain else 3)
            for way in (taps, diagonal, windows, plain)
        }
        rows.append({"shape": shape, "ways": ways})
        print(line(rows[-1]), flush=True)
    measure.write(NAME, rows, batch=batch)


if __name__ == "__main__":
    flags.DEFINE_integer("batch", 4, "Images in the batch.")
    flags.DEFINE_bool("smoke", False, "One tiny shape, to see that all runs.")
    run_main(main)
