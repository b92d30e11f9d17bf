"""All goals as data: which rows of a result each applies to, and the number to reach."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]

ACCELERATOR = ("gpu", "tpu")
KERAS = ("speedup/keras_jax", "speedup/keras_tensorflow")
LAYER = "{shape[0]}×{shape[1]}×{shape[2]}, {shape[3]}, batch {batch}, {dtype}"
STEP = "{model}, batch {batch}, {dtype}"


class Goal(NamedTuple):
    """A goal.

    Attributes:
        benchmark: The benchmark that measures it.
        what: The goal in words.
        number: The least value that reaches it.
        value: Path of the value in a row; of several paths, the smallest value counts.
        where: Values of fields of the row or the result; a tuple for any of several.
        case: What a row measured, a format string.
        shown: Path of the value to show, if another.
    """

    benchmark: str
    what: str
    number: float
    value: str | tuple[str, ...]
    where: Mapping[str, Any]
    case: str
    shown: str = ""


class Verdict(NamedTuple):
    """Whether a row reached a goal.

    Attributes:
        goal: The goal in words.
        row: The row.
        case: What it measured.
        value: The value to show.
        reached: Whether it is enough.
    """

    goal: str
    row: Row
    case: str
    value: float
    reached: bool

    def __str__(self) -> str:
        """The goal and whether it is reached, in Markdown."""
        return f"{self.goal} {'reached' if self.reached else '**missed**'}"


def _layer(what: str, number: float, value: Any, **where: Any) -> Goal:
    return Goal("attention_kernel", what, number, value, where, LAYER)


def _step(what: str, number: float, value: str, **where: Any) -> Goal:
    return Goal("train_step", what, number, f"speedup/{value}", where, STEP)


def _pipeline(what: str, number: float, value: str, **where: Any) -> Goal:
    return Goal("input_pipeline", what, number, value, where, "{images}")


RELEASED = {"pass": "both", "variant": "released"}
LARGE = {"shape": [28, 28, 512, 16], "batch": 256}
ON_CPU = {"platform": "cpu", "batch": 8, "dtype": "float32"}
ON_GPU = {"platform": ACCELERATOR, "dtype": "bfloat16"}
INFERENCE = ("keras_tensorflow", "keras_jax", "torch", "onnx")
ERRORS = "bfloat16 within two standard errors of float32"

GOALS = (
    _layer("10× Keras", 10, KERAS, platform="cpu", **RELEASED),
    _layer("50× Keras", 50, KERAS, platform=ACCELERATOR, **RELEASED),
    _layer("80% of the limit", 0.8, "of_limit", platform=ACCELERATOR, **LARGE)._replace(
        case="{variant}, {pass}, " + LAYER
    ),
    _step("1× Keras, TensorFlow", 1, "keras_tensorflow", **ON_CPU),
    _step("1.25× PyTorch", 1.25, "torch", **ON_GPU),
    _step("3× Keras, TensorFlow", 3, "keras_tensorflow", **ON_GPU),
    _step("3× Keras, JAX", 3, "keras_jax", **ON_GPU),
    _step("0.97× without attention", 0.97, "without"),
    _pipeline("Grain at 1× tf.data", 1, "grain_speedup", pipeline="tf.data"),
    _pipeline("Grain at 1× tf.data, aliased", 1, "grain_speedup", pipeline="tf.data, aliased"),
    _pipeline("in-memory data at 0.99× the step in place", 0.99, "share", pipeline="in_memory"),
    Goal(
        *("inference", "1× the fastest peer", 1, tuple(f"speedup/{each}" for each in INFERENCE)),
        {"measured": "model", "platform": "cpu", "batch": 64},
        "{model}, batch {batch}",
    ),
    Goal(
        *("inference", "from files, 0.9× the slower of decoding and model", 0.9, "share"),
        *({"measured": "files"}, "{model}"),
    ),
    Goal(
        *("patch_throughput", "0.97× plain", 0.97, "of_plain", {"way": "attention"}),
        "{backbone}, {dtype}",
    ),
    # Of minus the distance in standard errors.
    Goal("runs", ERRORS, -2, "closeness", {"row": "bfloat16 - float32"}, "{metric}", "difference"),
)


def lookup(tree: Any, path: str) -> Any:
    """The value at a path such as ``metrics/macro/auc``; None if there is none."""
    for name in path.split("/"):
        tree = (tree or {}).get(name)
    return tree


def judge(result: Row) -> list[Verdict]:
    """The verdicts of all goals on a result."""
    return [
        verdict
        for goal in GOALS
        if goal.benchmark == result["benchmark"]
        for row in result["rows"]
        for verdict in _judge_row(goal, row, {**result, **row})
    ]


def _judge_row(goal: Goal, row: Row, facts: Row) -> Iterator[Verdict]:
    for field, wanted in goal.where.items():
        if facts.get(field) not in (wanted if isinstance(wanted, tuple) else (wanted,)):
            return
    paths = (goal.value,) if isinstance(goal.value, str) else goal.value
    found = [value for path in paths if (value := lookup(facts, path)) is not None]
    if found:
        value = lookup(facts, goal.shown) if goal.shown else min(found)
        case = goal.case.format(**facts)
        yield Verdict(goal.what, row, case, value, min(found) >= goal.number)
