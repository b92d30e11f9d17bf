"""Images per second of the whole training step of the published models, against all peers.

    python benchmarks/train_step.py [--models=irv2_sa,resnet50] [--batches=8] [--dtypes=float32]

Ours is the step that ``jaxattn.train`` takes: bytes that lie on the device are read, augmented and
normalised as the model's config has it, then forward, backward, Adam and metrics, in one program.
The peers, our own writing of the published models in Keras (on TensorFlow and on JAX) and in
PyTorch (torchvision's and timm's networks, or by hand; channels_last), have less to do: the same
batch each time, in place, normalised and not augmented, and no dropout; see ``peers/keras_step.py``
and ``peers/torch_step.py``. On a GPU, PyTorch and TensorFlow compile, and bfloat16 is by the mixed
precision of each.

Every way has a process of its own, and they take their steps in turn, so that what else the machine
does hits all. In each turn a first step, which finds caches and memory as the others have left them
and their threads still waiting for work, is not counted. A model with attention is timed together
with ours without, unless that has more operations and so is another network: Datta's ResNet-34
halves the resolution at its attention block, early on.

That all compute the same: parameters are as many as in Keras (in PyTorch, where biases and scales
may differ, those of kernels), and ours, given the Keras model's weights, has the loss that Keras
has at its first step. Where it differs, the peer is shown by ≠: TensorFlow's kernels for CPUs read
other channels in the published attention layer (see ``peers/keras_models.py``). The time that this
takes them still counts.

**Utilisation** is the share of the device's speed, measured just before by a large matrix product
of the row's type, that the model's operations are: three times those of the products and
convolutions of a forward pass.

Rows of other models, batches and types that an earlier run on the same machine has written stay.
"""

import contextlib
import itertools
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import measure
from benchmarks.peers.elsewhere import Process, Unavailable
from jaxattn.data import augment
from jaxattn.errors import InputError, suggestion
from jaxattn.cli import run_main
from jaxattn.models import registry

NAME = "train_step"
BACKBONES = ("irv2", "densenet201", "resnet50", "resnet34", "vgg16", "koefler_cnn")
MODELS = tuple(name + attention for name in BACKBONES for attention in ("", "_sa"))
KERAS = {"keras_tensorflow": "Keras, TensorFlow", "keras_jax": "Keras, JAX"}
PEERS = {**KERAS, "torch": "PyTorch"}
#: Largest difference of the first loss from Keras', relative to it.
BOUNDS = {"float32": 1e-3, "bfloat16": 5e-2}
#: Goals: times the speed of Keras on TensorFlow (CPU), of PyTorch and of Keras on either (GPU), and
#: of ours without attention.
CPU_GOAL, TORCH_GOAL, KERAS_GOAL, ATTENTION_GOAL = 1.0, 1.25, 3.0, 0.97
CLASSES = 7

Row = dict[str, Any]


class Case(NamedTuple):
    """What a row is of."""

    model: str
    batch: int
    dtype: str
    size: int

    def write_inputs(self, path: Path) -> None:
        """Random ``images`` of bytes, the same ``normalised``, and ``labels``."""
        rng = np.random.default_rng(0)
        shape = (self.batch, self.size, self.size, 3)
        images = rng.integers(0, 256, shape, np.uint8)
        normalise = augment.normalisation(registry.find(self.model).normalisation)
        normalised = np.asarray(normalise(jnp.asarray(images, jnp.float32) / 255.0))
        labels = rng.integers(0, CLASSES, self.batch, np.int32)
        np.savez(path, images=images, normalised=normalised, labels=labels)


class Stepping(NamedTuple):
    """A process that is ready to take steps, as `measure.seconds` wants it."""

    process: Process

    def time(self, calls: int) -> float:
        """Mean seconds of so many steps in a row, after one that is not counted."""
        self.process.ask(calls=1)
        return self.process.ask(calls=calls)


def commands(given: Any) -> dict[str, tuple[list[str], dict[str, str]]]:
    """How ours and each peer that is asked for are started: the command, and the environment."""
    folder = Path(__file__).parent / "peers"
    keras = str(folder / "keras_step.py")
    found = {
        "ours": ([sys.executable, str(folder / "jaxattn_step.py"), str(given.cpu_devices)], {}),
        "keras_tensorflow": ([given.tensorflow_python, keras], {"KERAS_BACKEND": "tensorflow"}),
        "keras_jax": ([sys.executable, keras], {"KERAS_BACKEND": "jax"}),
        "torch": ([given.torch_python, str(folder / "torch_step.py")], {}),
    }
    return {name: each for name, each in found.items() if name in ("ours", *given.peers)}


class Running(NamedTuple):
    """Ours and the peers, ready for one case.

    Attributes:
        ways: By name.
        facts: What each says of the model.
        skipped: Why a peer is missing.
    """

    ways: dict[str, Stepping]
    facts: dict[str, Row]
    skipped: dict[str, str]


def start(
    case: Case, given: Any, folder: Path, ours: contextlib.ExitStack, peers: contextlib.ExitStack
) -> Running:
    """Starts and prepares ours and each peer, in processes that the stacks end.

    Raises:
        InputError: Ours does not run.
    """
    case.write_inputs(folder / "inputs.npz")
    running = Running({}, {}, {})
    for name, (command, env) in commands(given).items():
        question = {
            **case._asdict(),
            "classes": CLASSES,
            "inputs": str(folder / "inputs.npz"),
            "weights": str(folder / f"{name}.npz"),
            "compile": given.compile,
        }
        stack = ours if name == "ours" else peers
        try:
            if not command[0]:
                raise Unavailable("not asked for")
            process = stack.enter_context(Process(command, env))
            facts = process.ask(prepare=question)
            if "layers" in facts:
                question["layers"] = facts.pop("layers")
                facts["our_loss"] = running.ways["ours"].process.ask(**question)
        except Unavailable as reason:
            if name == "ours":
                raise InputError(f"{case}: ours does not run: {reason}") from reason
            running.skipped[name] = str(reason)
            continue
        running.ways[name], running.facts[name] = Stepping(process), {**process.about, **facts}
    return running


def differs(name: str, row: Mapping[str, Any]) -> bool:
    """Whether a peer's model is another one than ours."""
    mine, other = row["facts"]["ours"], row["facts"][name]
    if name not in KERAS:
        return other["kernels"] != mine["kernels"]
    apart = abs(other["our_loss"] / other["loss"] - 1)
    return other["parameters"] != mine["parameters"] or not apart <= BOUNDS[row["dtype"]]


def measured(
    case: Case, running: Running, without: Stepping | None, peak: float, repeats: int
) -> Row:
    """Times all ways of a case in turn.

    Args:
        case: What they are ready for.
        running: The ways.
        without: Ours of the same model without attention, to be timed with them.
        peak: Operations per second of the device.
        repeats: How often each is timed.
    """
    ways = running.ways | ({"without": without} if without else {})
    on_cpu = jax.default_backend() == "cpu"
    seconds = measure.seconds(ways, repeats=repeats, least=0.0 if on_cpu else 0.3)
    mine = seconds["ours"]["median"]
    return {
        **case._asdict(),
        "seconds": seconds,
        "images_per_second": {n: case.batch / each["median"] for n, each in seconds.items()},
        "speedup": {name: each["median"] / mine for name, each in seconds.items()},
        "memory": {n: way.process.ask(memory=True) for n, way in running.ways.items()},
        "utilisation": running.facts["ours"]["model_flops"] / mine / peak,
        "peak": peak,
        "facts": running.facts,
        "skipped": running.skipped,
    }


def plain_of(case: Case, running: Running, before: Case, ran: Running) -> Stepping | None:
    """Ours of the case before, if that is the same network without attention."""
    if case == before or case._replace(model=case.model.removesuffix("_sa")) != before:
        return None
    now, then = (each.facts["ours"]["model_flops"] for each in (running, ran))
    return ran.ways["ours"] if then <= now else None


def goals(result: Mapping[str, Any]) -> list[measure.Goal]:
    """The goals that hold for its rows."""
    return [goal for row in ordered(result["rows"]) for goal in _goals(row, result["platform"])]


def _goals(row: Mapping[str, Any], platform: str) -> list[measure.Goal]:
    speedup, found = row["speedup"], []
    case = f"{row['model']}, batch {row['batch']}, {row['dtype']}"
    if platform == "cpu":
        judged = (row["batch"], row["dtype"]) == (8, "float32")
        wanted = {"keras_tensorflow": CPU_GOAL} if judged else {}
    elif row["dtype"] == "bfloat16":
        wanted = {"torch": TORCH_GOAL, **dict.fromkeys(KERAS, KERAS_GOAL)}
    else:
        wanted = {}
    for name, least in wanted.items():
        if name in speedup:
            what = f"{least:g}× {PEERS[name]}"
            found.append(measure.Goal(what, case, speedup[name], speedup[name] >= least))
    if "without" in speedup:
        what = f"{ATTENTION_GOAL}× without attention"
        share = speedup["without"]
        found.append(measure.Goal(what, case, share, share >= ATTENTION_GOAL))
    return found


def ordered(rows: Sequence[Row]) -> list[Row]:
    """By type, batch and model."""
    place = {name: place for place, name in enumerate(MODELS)}
    return sorted(
        rows, key=lambda row: (row["dtype"] != "bfloat16", row["batch"], place[row["model"]])
    )


def _cells(row: Mapping[str, Any], platform: str) -> list[str]:
    """A line of the table."""
    rate = {name: row["batch"] / taken for name, taken in row["seconds"]["ours"].items()}
    mine = row["facts"]["ours"]
    cells = [
        row["model"],
        f"{row['batch']} × {row['size']}², {row['dtype']}",
        f"{rate['median']:.3g} ({rate['max']:.3g}–{rate['min']:.3g})",
    ]
    for name in PEERS:
        if name not in row["speedup"]:
            cells.append("–")
            continue
        sign = " ≠" if differs(name, row) else ""
        rate_of_peer = row["images_per_second"][name]
        cells.append(f"{rate_of_peer:.3g}, ours {row['speedup'][name]:.2f}×{sign}")
    cells.append(f"{row['speedup']['without']:.3f}×" if "without" in row["speedup"] else "–")
    cells.append(f"{row['utilisation']:.0%}")
    cells.append(f"{row['memory']['ours'] / 2**30:.2f}")
    cells.append(f"{mine['compile']:.0f}")
    cells.append("; ".join(goal.verdict for goal in _goals(row, platform)))
    return cells


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each case."""
    head = ["", "batch", "ours, images/s", *PEERS.values()]
    head += ["of ours without attention", "utilisation", "memory, GiB", "compiling, s", "goal"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    rows = ordered(result["rows"])
    lines += ["| " + " | ".join(_cells(row, result["platform"])) + " |" for row in rows]
    speeds = measure.speeds((row["dtype"], row["peak"]) for row in rows)
    lines += [
        "",
        "Ours: median (slowest–fastest) of the runs. Peers: median, and ours relative to it; "
        "≠: computes something else. Memory is ours: of the device, or on a CPU the process' "
        f"largest. Speed of a large product: {speeds}.",
    ]
    facts = [row["facts"][n] for row in rows for n in PEERS if n in row["facts"]]
    said = {f"{k} {v}" for each in facts for k, v in each.items() if isinstance(v, str)}
    lines += [f"Peers: {', '.join(sorted(said))}."] if said else []
    skipped = {f"{PEERS[n]}: {why}" for row in rows for n, why in row["skipped"].items()}
    lines += [f"Not measured: {'; '.join(sorted(skipped))}."] if skipped else []
    return "\n".join(lines) + "\n"


def summary(result: Mapping[str, Any]) -> str:
    """Markdown: how many times a peer's speed ours is, where a goal asks."""
    rows = [row for row in ordered(result["rows"]) if _goals(row, result["platform"])]
    lines = ["| | batch | " + " | ".join(PEERS.values()) + " | without attention |"]
    lines.append("|---" * (len(PEERS) + 3) + "|")
    for row in rows:
        ratios = (row["speedup"].get(name) for name in (*PEERS, "without"))
        cells = [row["model"], f"{row['batch']} × {row['size']}², {row['dtype']}"]
        cells += ("–" if each is None else f"{each:.2f}×" for each in ratios)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def peaks(dtypes: Sequence[str], smoke: bool) -> dict[str, float]:
    """Operations per second of a large matrix product of each type."""
    side = 128 if smoke else 2048 if jax.default_backend() == "cpu" else 8192
    found = {}
    for dtype in dtypes:
        matrix = jnp.full((side, side), 1 / side, dtype)
        product = jax.jit(jnp.matmul)
        taken = measure.seconds({"product": lambda: product(matrix, matrix)}, repeats=5)  # noqa: B023
        found[dtype] = 2 * side**3 / taken["product"]["min"]
    return found


def cases(given: Any) -> list[Case]:
    """What to measure, in order.

    Raises:
        InputError: A model is unknown.
    """
    on_cpu = jax.default_backend() == "cpu"
    if given.smoke:
        return [Case("koefler_cnn_sa", 2, "float32", 75)]
    for name in given.models:
        if name not in MODELS:
            raise InputError(f"--models: {name!r} given{suggestion(name, MODELS)}")
    batches = [int(each) for each in given.batches] or ([8] if on_cpu else [64])
    dtypes = given.dtypes or (["float32"] if on_cpu else ["bfloat16", "float32"])
    return [
        Case(name, batch, dtype, registry.find(name).image_size)
        for dtype, batch, name in itertools.product(dtypes, batches, given.models)
    ]


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    given = flags.FLAGS
    platform, todo = jax.default_backend(), cases(given)
    if given.smoke:
        given.repeats, given.peers = 1, []
    peak = peaks(sorted({case.dtype for case in todo}), given.smoke)
    rows: list[Row] = []
    # Ours of the case before stays, to be timed with the same model with attention.
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as last:
        plain: tuple[Case, Running] | None = None
        for case in todo:
            with contextlib.ExitStack() as ours, contextlib.ExitStack() as peers:
                running = start(case, given, Path(folder), ours, peers)
                without = plain_of(case, running, *plain) if plain else None
                rows.append(measured(case, running, without, peak[case.dtype], given.repeats))
                last.pop_all().close()
                last.push(ours.pop_all())
                plain = case, running
            # A run that is cut off leaves what it has.
            measure.write(NAME, rows, case=("model", "batch", "dtype"), platform=platform)
            print(table({"platform": platform, "rows": rows[-1:]}).splitlines()[2], flush=True)


if __name__ == "__main__":
    flags.DEFINE_list("models", list(MODELS), "Names of models, with and without _sa.")
    flags.DEFINE_list("batches", [], "Images in a batch; 8, on an accelerator 64, without.")
    flags.DEFINE_list("dtypes", [], "float32, bfloat16; on a CPU the former, else both, without.")
    flags.DEFINE_list("peers", list(PEERS), f"Of {', '.join(PEERS)}.")
    flags.DEFINE_integer("repeats", 3, "How often each way is timed.")
    flags.DEFINE_integer("cpu_devices", 1, "Devices to make of the CPU's cores, for ours.")
    flags.DEFINE_bool("compile", False, "Whether PyTorch compiles on a CPU too.")
    flags.DEFINE_string(
        "tensorflow_python",
        sys.executable,
        "An interpreter that has TensorFlow and Keras; empty for none.",
    )
    flags.DEFINE_string(
        "torch_python", sys.executable, "One that has PyTorch, torchvision and timm; likewise."
    )
    flags.DEFINE_bool("smoke", False, "One tiny model alone, to see that all runs.")
    run_main(main)
