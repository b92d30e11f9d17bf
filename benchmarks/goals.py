"""All goals: what is to be reached, the number, and which measurements it is judged by."""

import math
import operator
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Case(NamedTuple):
    """A measurement that a goal applies to.

    Attributes:
        row: Its row of the result; None for the whole.
        what: What was measured.
        value: The value.
        unit: What the goal's number counts; 1 but for standard errors.
    """

    row: Row | None
    what: str
    value: float
    unit: float = 1.0


class Goal(NamedTuple):
    """A goal.

    Attributes:
        benchmark: The benchmark that measures it.
        what: The goal in words.
        number: The number to reach.
        cases: The measurements of a result that it applies to.
        reached: Whether a value reaches the number, in units.
    """

    benchmark: str
    what: str
    number: float
    cases: Callable[[Row], Iterator[Case]]
    reached: Callable[[float, float], bool] = operator.ge


class Verdict(NamedTuple):
    """Whether a case reached a goal.

    Attributes:
        goal: The goal in words.
        row: The row of the result that was judged; None for the whole.
        case: What was measured.
        value: The value.
        reached: Whether that is enough.
    """

    goal: str
    row: Row | None
    case: str
    value: float
    reached: bool

    def __str__(self) -> str:
        """The goal and whether it is reached, in Markdown."""
        return f"{self.goal} {'reached' if self.reached else '**missed**'}"


KERAS = ("keras_jax", "keras_tensorflow")


def _attention_speedup(on_cpu: bool) -> Callable[[Row], Iterator[Case]]:
    """Speed of the released layer, forward and backward, over the faster Keras backend."""

    def cases(result: Row) -> Iterator[Case]:
        for row in result["rows"] if on_cpu == (result["platform"] == "cpu") else ():
            ratios = [row["speedup"][name] for name in KERAS if name in row["speedup"]]
            if ratios and row["pass"] == "both" and row["variant"] == "released":
                yield Case(row, _attention_case(row), min(ratios))

    return cases


def _attention_limit(result: Row) -> Iterator[Case]:
    """Share of the bandwidth or compute limit on an accelerator, at one large shape."""
    for row in result["rows"] if result["platform"] != "cpu" else ():
        if (row["shape"], row["batch"]) == ([28, 28, 512, 16], 256):
            what = "forward + backward" if row["pass"] == "both" else "forward"
            yield Case(row, f"{row['variant']}, {what}, {_attention_case(row)}", row["of_limit"])


def _attention_case(row: Row) -> str:
    height, width, channels, heads = row["shape"]
    return f"{height}×{width}×{channels}, {heads}, batch {row['batch']}, {row['dtype']}"


def _step_speedup(peer: str, on_cpu: bool) -> Callable[[Row], Iterator[Case]]:
    """Speed over a peer's: on a CPU at batch 8 in float32, on an accelerator in bfloat16."""

    def cases(result: Row) -> Iterator[Case]:
        for row in result["rows"] if on_cpu == (result["platform"] == "cpu") else ():
            judged = (row["batch"], row["dtype"]) == (8, "float32")
            if not on_cpu:
                judged = row["dtype"] == "bfloat16"
            if judged and peer in row["speedup"]:
                yield Case(row, _step_case(row), row["speedup"][peer])

    return cases


def _attention_share(result: Row) -> Iterator[Case]:
    """Speed of the step with attention over the same network without it."""
    for row in result["rows"]:
        if "without" in row["speedup"]:
            yield Case(row, _step_case(row), row["speedup"]["without"])


def _step_case(row: Row) -> str:
    return f"{row['model']}, batch {row['batch']}, {row['dtype']}"


def _grain(pipeline: str) -> Callable[[Row], Iterator[Case]]:
    """Images per second of Grain over another pipeline's."""

    def cases(result: Row) -> Iterator[Case]:
        rates = [row for row in result["rows"] if "images_per_second" in row]
        own = {row["images"]: row for row in rates if row["pipeline"] == "Grain"}
        for row in rates:
            if row["pipeline"] == pipeline:
                grain = own[row["images"]]["images_per_second"]
                yield Case(row, row["images"], grain / row["images_per_second"])

    return cases


def _in_memory(result: Row) -> Iterator[Case]:
    """Speed of the training loop on data in device memory over the step on one batch in place."""
    for row in result["rows"]:
        if row["measured"] == "waiting" and row["pipeline"] == "in_memory":
            yield Case(row, row["images"], row["share"])


def _patches(result: Row) -> Iterator[Case]:
    """Patches per second with attention over the same backbone on plain images."""
    rows = {row["way"]: row for row in result["rows"]}
    attention, plain = (rows[way]["patches_per_second"] for way in ("attention", "plain"))
    case = f"{result['backbone']}, {result['dtype']}"
    yield Case(rows["attention"], case, attention / plain)


def _precision(result: Row) -> Iterator[Case]:
    """Metrics of bfloat16 runs less those of float32 runs, over seeds."""
    for name in dict.fromkeys(name for row in result["rows"] for name in row["values"]):
        if both := difference(result, name):
            yield Case(None, name, *both)


def difference(result: Row, name: str) -> tuple[float, float] | None:
    """Mean of a metric of bfloat16 runs less that of float32 runs, and its standard error.

    None unless there are two runs of each.
    """
    by_type: dict[str, list[float]] = {}
    for row in result["rows"]:
        by_type.setdefault(row["row"].rpartition(", ")[2], []).append(row["values"].get(name))
    half, full = (by_type.get(dtype, ()) for dtype in ("bfloat16", "float32"))
    if min(len(half), len(full)) < 2:
        return None
    error = math.sqrt(sum(statistics.variance(each) / len(each) for each in (half, full)))
    return statistics.mean(half) - statistics.mean(full), error


def _within(value: float, number: float) -> bool:
    return abs(value) <= number


GOALS = (
    Goal("attention_kernel", "10× Keras", 10, _attention_speedup(on_cpu=True)),
    Goal("attention_kernel", "50× Keras", 50, _attention_speedup(on_cpu=False)),
    Goal("attention_kernel", "80% of the limit", 0.8, _attention_limit),
    Goal("train_step", "1× Keras, TensorFlow", 1, _step_speedup("keras_tensorflow", on_cpu=True)),
    Goal("train_step", "1.25× PyTorch", 1.25, _step_speedup("torch", on_cpu=False)),
    Goal("train_step", "3× Keras, TensorFlow", 3, _step_speedup("keras_tensorflow", on_cpu=False)),
    Goal("train_step", "3× Keras, JAX", 3, _step_speedup("keras_jax", on_cpu=False)),
    Goal("train_step", "0.97× without attention", 0.97, _attention_share),
    Goal("input_pipeline", "Grain at 1× tf.data", 1, _grain("tf.data")),
    Goal("input_pipeline", "Grain at 1× tf.data, aliased", 1, _grain("tf.data, aliased")),
    Goal("input_pipeline", "in-memory data at 0.99× the step in place", 0.99, _in_memory),
    Goal("patch_throughput", "0.97× plain", 0.97, _patches),
    Goal("runs", "bfloat16 within two standard errors of float32", 2, _precision, _within),
)


def judge(result: Row) -> list[Verdict]:
    """The verdicts of all goals on a result."""
    found = []
    for goal in GOALS:
        if goal.benchmark != result["benchmark"]:
            continue
        for row, case, value, unit in goal.cases(result):
            reached = goal.reached(value, goal.number * unit)
            found.append(Verdict(goal.what, row, case, value, reached))
    return found
