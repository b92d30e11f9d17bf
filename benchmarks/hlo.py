"""Reads the text of a program that XLA optimised: its kernels, and what each moves and computes.

A kernel is an instruction that runs: those of the entry computation, and of the bodies of its
loops, as often as these run. Its bytes are those of its operands and results in the device's main
memory, padded as the layout says (a TPU pads the last two axes to tiles). Of an operand that a
fusion only slices or gathers from, the slices count, and of an array that it updates, the update.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = (.+?) ([\w-]+)\((.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%([\w.-]+)")
_TILE = re.compile(r"T\((\d+),(\d+)\)")

#: Instructions that move nothing: names, tuples, and the ends of what was started before.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "conditional", "call"),
}
#: Instructions in which devices exchange arrays.
COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
#: What a fusion is called after: the first of these that is in it.
_KINDS = (
    *("convolution", "dot", *COLLECTIVES, "select-and-scatter", "gather", "scatter", "sort"),
    *("reduce", "reduce-window"),
)


class Array(NamedTuple):
    """An array of a program."""

    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...]  # axes, from the one that varies fastest
    tiling: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        bits = re.search(r"\d+", self.dtype)
        return max(1, int(bits[0]) // 8 if bits else 1)

    @property
    def bytes(self) -> int:
        """Bytes in main memory; 0 if it lies in a memory of the core."""
        if "S(" in self.tiling:
            return 0
        lengths = [self.shape[axis] for axis in self.order]
        if tile := _TILE.search(self.tiling):
            for place, length in enumerate((int(tile[2]), int(tile[1]))[: len(lengths)]):
                lengths[place] = -(-lengths[place] // length) * length
        return math.prod(lengths) * self.itemsize


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a program."""

    name: str
    within: str  # name of its computation
    op: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str  # all after the opening parenthesis

    @property
    def source(self) -> str:
        """JAX's name of what it computes, or ''."""
        return self.attribute(r'op_name="([^"]*)"')

    def attribute(self, pattern: str) -> str:
        """The first group of a pattern in the line, or ''."""
        found = re.search(pattern, self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An instruction that runs.

    Attributes:
        name: Of the instruction.
        kind: One of ``_KINDS``, ``copy``, ``transpose``, ``elementwise``, or the instruction's own.
        source: JAX's name of its result.
        sources: JAX's names of all that it computes.
        runs: How often it runs.
        arrays: Its results.
        bytes: Read and written in one run.
        float32: The share of these that is float32.
        flops: Operations of its convolutions and matrix products in one run.
        dtype: Of their first operand.
        layout: Of their operands and result, for a convolution.
    """

    name: str
    kind: str
    source: str
    sources: tuple[str, ...]
    runs: int
    arrays: tuple[Array, ...]
    bytes: int
    float32: int
    flops: float
    dtype: str
    layout: str

    def mostly(self, scope: str) -> bool:
        """Whether more than half of what it computes comes from a scope of JAX's names."""
        return 2 * sum(f"/{scope}/" in name for name in self.sources) > len(self.sources)


#: Instructions by computation and name.
Program = Mapping[str, Mapping[str, Instruction]]


def parse(text: str) -> tuple[Program, str]:
    """All computations by name, and the name of the entry."""
    program: dict[str, dict[str, Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            head = _COMPUTATION.match(line)
            current = head[2] if head else ""
            if head and head[1]:
                entry = current
        elif current and (found := _INSTRUCTION.match(line)):
            name, types, op, rest = found.groups()
            given = rest.split("), ")[0]
            of = tuple(re.findall(r"%([\w.-]+)", given))
            line_of = Instruction(name, current, op, tuple(_arrays(types)), of, rest)
            program.setdefault(current, {})[name] = line_of
    return program, entry


def _arrays(types: str) -> Iterator[Array]:
    for dtype, lengths, order, tiling in _ARRAY.findall(types):
        shape = tuple(int(each) for each in lengths.split(",") if each)
        axes = tuple(int(each) for each in order.split(",") if each)
        yield Array(dtype, shape, axes or tuple(reversed(range(len(shape)))), tiling)


def kernels(text: str) -> list[Kernel]:
    """The kernels of a program in order."""
    program, entry = parse(text)
    return list(_kernels(program, entry, 1))


def _kernels(program: Program, computation: str, runs: int) -> Iterator[Kernel]:
    for each in program[computation].values():
        if each.op == "while":
            body = each.attribute(r"body=%([\w.-]+)")
            yield from _kernels(program, body, runs * _trips(program, each))
        elif each.op == "call":
            yield from _kernels(program, each.attribute(r"to_apply=%([\w.-]+)"), runs)
        elif each.op not in _FREE and not each.op.endswith("-done"):
            yield _kernel(program, each, runs)


def _trips(program: Program, loop: Instruction) -> int:
    """How often a loop runs: as the compiler says, or as far as its condition counts."""
    if known := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    condition = program.get(loop.attribute(r"condition=%([\w.-]+)"), {}).values()
    limits = [re.match(r"(\d+)\)", each.rest) for each in condition if each.op == "constant"]
    return max([1, *(int(each[1]) for each in limits if each)])


def _kernel(program: Program, each: Instruction, runs: int) -> Kernel:
    inside = list(_inside(program, each))
    # The tuple of a start holds its result, its operand and a context.
    results = each.results[:1] if each.op.endswith("-start") else each.results
    moved = [*results]
    for place, name in enumerate(dict.fromkeys(each.operands)):
        if name in program[each.within]:
            moved += _read(program, each, place, program[each.within][name].results)
    if updates := [i for i in inside if i.op == "dynamic-update-slice"]:  # in place
        whole = {i.results[0].size for i in updates}
        moved = [array for array in moved if array.size not in whole]
        moved += [program[i.within][i.operands[1]].results[0] for i in updates]
    matrix = [found for found in ((_flops(program, i), i) for i in inside) if found[0]]
    return Kernel(
        name=each.name,
        kind=_kind(each, inside),
        source=each.source,
        sources=tuple(filter(None, (inner.source for inner in inside))),
        runs=runs,
        arrays=results,
        bytes=sum(array.bytes for array in moved),
        float32=sum(array.bytes for array in moved if array.dtype == "f32"),
        flops=sum(flops for flops, _ in matrix),
        dtype=_operands(program, matrix[0][1])[0].dtype if matrix else "",
        layout=matrix[0][1].attribute(r"dim_labels=(\w+->\w+)") if matrix else "",
    )


def _inside(program: Program, each: Instruction) -> Iterator[Instruction]:
    """The instruction, and all in the computations that it calls."""
    yield each
    for name in _CALLED.findall(each.rest):
        for inner in program.get(name, {}).values():
            yield from _inside(program, inner)


def _kind(each: Instruction, inside: Sequence[Instruction]) -> str:
    found = {
        "convolution" if _is_cudnn(inner) else "dot" if _is_gemm(inner) else inner.op
        for inner in inside
    }
    found |= {op.removesuffix("-start") for op in found}
    for kind in _KINDS:
        if kind in found:
            return kind
    plain = found - _FREE - {"fusion", "convert", "broadcast"}
    if each.op in ("copy", "copy-start", "transpose") or plain in ({"copy"}, {"transpose"}):
        return "transpose" if "transpose" in found else "copy"
    return "elementwise" if each.op == "fusion" else each.op


def _is_cudnn(each: Instruction) -> bool:
    return "__cudnn$conv" in each.rest


def _is_gemm(each: Instruction) -> bool:
    return (each.op == "custom-call" and "gemm" in each.rest) or "__cublas" in each.rest


def _read(
    program: Program, each: Instruction, place: int, operand: Sequence[Array]
) -> Sequence[Array]:
    """What a kernel reads of an operand: all, or the slices of a fusion that only slices it."""
    called = each.attribute(r"calls=%([\w.-]+)") if each.op == "fusion" else ""
    body = program.get(called, {}).values()
    names = {i.name for i in body if i.op == "parameter" and i.rest.startswith(f"{place})")}
    slices: list[Array] = []
    for user in (i for i in body if names.intersection(i.operands)):
        if user.op in ("bitcast", "get-tuple-element"):
            return operand
        if user.op not in ("slice", "dynamic-slice", "gather") or user.operands[0] not in names:
            return operand
        slices += user.results
    return slices or operand


def _operands(program: Program, each: Instruction) -> list[Array]:
    found = program[each.within]
    return [array for name in each.operands if name in found for array in found[name].results]


def _flops(program: Program, each: Instruction) -> float:
    """Operations of a convolution or matrix product, 0 for anything else.

    Each element of a convolution's output is one product with as many elements as a kernel has per
    output channel, whichever of the three is computed from the other two.
    """
    if each.op == "dot" or _is_gemm(each):
        left, right = _operands(program, each)[:2]
        summed = [
            int(n) for n in each.attribute(r"lhs_contracting_dims=\{([\d,]*)").split(",") if n
        ]
        if not summed:
            summed = [
                int(n) for n in re.findall(r'lhs_contracting_dimensions":\["(\d+)"', each.rest)
            ]
        return 2.0 * each.results[0].size * math.prod(left.shape[axis] for axis in summed)
    if not (each.op == "convolution" or _is_cudnn(each)):
        return 0.0
    left, right, result = *_operands(program, each)[:2], each.results[0]
    labels = each.attribute(r"dim_labels=(\w+_\w+->\w+)")
    if not labels:
        return 0.0
    output = labels.rpartition("->")[2]
    if "BackwardFilter" in each.rest:
        right, result = result, right
    elif "BackwardInput" in each.rest:
        result = left
    dilation = re.search(r"lhs_dilate=([\dx]+)", each.rest)
    zeros = math.prod(int(n) for n in dilation[1].split("x")) if dilation else 1
    return 2.0 * result.size * right.size / result.shape[output.index("f")] / zeros


def by_kind(found: Sequence[Kernel]) -> dict[str, dict[str, float]]:
    """Number of kernels, runs and bytes of each kind, most bytes first."""
    totals: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for each in found:
        totals[each.kind].update({"kernels": 1, "runs": each.runs, "bytes": each.runs * each.bytes})
    return {
        kind: dict(total) for kind, total in sorted(totals.items(), key=lambda i: -i[1]["bytes"])
    }


def collectives(found: Sequence[Kernel]) -> list[Kernel]:
    """The kernels in which devices exchange arrays."""
    return [each for each in found if each.kind in COLLECTIVES]
