"""All goals as data: which rows of a result each applies to, and the number to reach."""

from collections.abc import Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Goal(NamedTuple):
    """A goal.

    Attributes:
        benchmark: The benchmark that measures it.
        what: The goal in words.
        number: The least value that reaches it.
        value: Paths of the value in a row; of several, the smallest value counts.
        where: Values of fields of the row or the result; a tuple for any of several.
        shown: Path of the value to show, if another.
    """

    benchmark: str
    what: str
    number: float
    value: tuple[str, ...]
    where: Mapping[str, Any] = {}
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


TENSORFLOW, JAX, TORCH = "speedup/keras_tensorflow", "speedup/keras_jax", "speedup/torch"
PEERS = (TENSORFLOW, JAX, TORCH, "speedup/onnx")
CPU, ACCELERATOR = {"platform": "cpu"}, {"platform": ("gpu", "tpu")}
RELEASED = {"pass": "both", "variant": "released"}
LARGE = {"shape": [28, 28, 512, 16], "batch": 256}
STEP_ON_CPU = {**CPU, "batch": 8, "dtype": "float32"}
STEP_ON_GPU = {**ACCELERATOR, "dtype": "bfloat16"}
FORWARD = {**CPU, "measured": "model", "batch": 64}
FILES = "from files, 0.9× the slower of decoding and model"
ALIASED = {"pipeline": "tf.data, aliased"}
IN_MEMORY = "in-memory data at 0.99× the step in place"
PRECISION = "bfloat16 within two standard errors of float32"

GOALS = (
    Goal("attention_kernel", "10× Keras", 10, (TENSORFLOW, JAX), {**RELEASED, **CPU}),
    Goal("attention_kernel", "50× Keras", 50, (TENSORFLOW, JAX), {**RELEASED, **ACCELERATOR}),
    Goal("attention_kernel", "80% of the limit", 0.8, ("of_limit",), {**LARGE, **ACCELERATOR}),
    Goal("train_step", "1× Keras, TensorFlow", 1, (TENSORFLOW,), STEP_ON_CPU),
    Goal("train_step", "1.25× PyTorch", 1.25, (TORCH,), STEP_ON_GPU),
    Goal("train_step", "3× Keras, TensorFlow", 3, (TENSORFLOW,), STEP_ON_GPU),
    Goal("train_step", "3× Keras, JAX", 3, (JAX,), STEP_ON_GPU),
    Goal("train_step", "0.97× without attention", 0.97, ("speedup/without",)),
    Goal("input_pipeline", "Grain at 1× tf.data", 1, ("grain_speedup",), {"pipeline": "tf.data"}),
    Goal("input_pipeline", "Grain at 1× tf.data, aliased", 1, ("grain_speedup",), ALIASED),
    Goal("input_pipeline", IN_MEMORY, 0.99, ("share",), {"pipeline": "in_memory"}),
    Goal("inference", "1× the fastest peer", 1, PEERS, FORWARD),
    Goal("inference", FILES, 0.9, ("share",), {"measured": "files"}),
    Goal("patch_throughput", "0.97× plain", 0.97, ("of_plain",), {"way": "attention"}),
    # Of minus the distance in standard errors.
    Goal("runs", PRECISION, -2, ("closeness",), shown="difference"),
)
#: What a row measured.
CASES = {
    "attention_kernel": "{variant}, {pass}, {shape}, batch {batch}, {dtype}",
    "train_step": "{model}, batch {batch}, {dtype}",
    "input_pipeline": "{images}",
    "inference": "{model}, batch {batch}",
    "patch_throughput": "{backbone}, {dtype}",
    "runs": "{metric}",
}


def lookup(tree: Any, path: str) -> Any:
    """The value at a path such as ``metrics/macro/auc``; None if there is none."""
    for name in path.split("/"):
        tree = (tree or {}).get(name)
    return tree


def judge(result: Row) -> list[Verdict]:
    """The verdicts of all goals on a result."""
    verdicts = []
    for goal in (goal for goal in GOALS if goal.benchmark == result["benchmark"]):
        for row in result["rows"]:
            facts = {**result, **row}
            applies = all(
                facts.get(field) in (wanted if isinstance(wanted, tuple) else (wanted,))
                for field, wanted in goal.where.items()
            )
            found = [lookup(facts, path) for path in goal.value] if applies else []
            if values := [value for value in found if value is not None]:
                case = CASES[goal.benchmark].format(**facts)
                shown = lookup(facts, goal.shown) if goal.shown else min(values)
                reached = min(values) >= goal.number
                verdicts.append(Verdict(goal.what, row, case, shown, reached))
    return verdicts
