"""Images per second of the whole training step of the published models, against all peers.

    python -m benchmarks.train_step [--models=irv2_sa,resnet50] [--batches=8] [--dtypes=float32]

Ours is the step of ``jaxattn.train``: it reads bytes that lie on the device, augments and
normalises them as the model's config says, and runs forward, backward, Adam and metrics in one
program. The peers are our own implementations of the published models in Keras (on TensorFlow and
on JAX) and in PyTorch (networks of torchvision and timm or written by hand; channels_last), see
``references`` and ``peers``. They have less to do: the same batch each time, in place, normalised
and not augmented, and no dropout. On a GPU, PyTorch and TensorFlow compile; bfloat16 is each
library's mixed precision.

Each way runs in a process of its own, and they take turns, so that other load on the machine
affects all. Each turn starts with an uncounted step: the others have just used caches and memory,
and the threads sleep. A model with attention is timed together with ours without, except Datta's
ResNet-34, which without attention is another network, with more operations: attention halves the
resolution early on.

To check that all compute the same, the number of parameters is compared with Keras (with PyTorch,
where biases and scales may differ, only kernels), and so is the loss of ours with the Keras model's
weights with Keras' loss at its first step. A peer that differs is marked ≠: TensorFlow's CPU
kernels read other channels in the published attention layer (see ``references/keras_models.py``).
The time that this takes them counts all the same.

**Utilisation** is the model's operations per second, three times those of a forward pass, over the
device's speed in a large matrix product of the row's type, measured just before.

Rows of other models, batches and types from earlier runs on the same machine are kept.
"""

import contextlib
import itertools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, tables
from benchmarks.process import Process, Timed, Unavailable
from jaxattn.data.augment import NORMALISATIONS
from jaxattn.errors import invalid, unknown
from jaxattn.models import registry

CLASSES = 7
#: Networks that have fewer operations with attention than without.
SMALLER = ("resnet34_sa",)

Row = dict[str, Any]


class Case(NamedTuple):
    """What a row measures."""

    model: str
    batch: int
    dtype: str
    size: int

    def inputs(self) -> dict[str, np.ndarray]:
        """Random ``images`` of bytes, the same ``normalised``, and ``labels``."""
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (self.batch, self.size, self.size, 3), np.uint8)
        normalise = NORMALISATIONS[registry.find(self.model).normalisation]
        normalised = np.array(normalise(jnp.asarray(images, jnp.float32) / 255.0))
        labels = rng.integers(0, CLASSES, self.batch, np.int32)
        return {"images": images, "normalised": normalised, "labels": labels}


class Running(NamedTuple):
    """Ours and the peers, ready for one case.

    Attributes:
        processes: By name.
        facts: What each says about the model.
        skipped: Why a peer is missing.
    """

    processes: dict[str, Process]
    facts: dict[str, Row]
    skipped: dict[str, str]


def start(
    case: Case,
    pythons: dict[str, str],
    compile: bool,
    own: contextlib.ExitStack,
    others: contextlib.ExitStack,
) -> Running:
    """Starts ours and each peer.

    Args:
        case: The case.
        pythons: Interpreters by the name of the peer.
        compile: Whether PyTorch compiles on a CPU too.
        own: Ends our process.
        others: Ends the peers' processes.

    Raises:
        InputError: Ours does not run.
    """
    running = Running({}, {}, {})
    question = {**case._asdict(), **case.inputs(), "classes": CLASSES, "compile": compile}
    for name, python in {"ours": sys.executable, **pythons}.items():
        module, _, backend = name.partition("_")
        env = {"KERAS_BACKEND": backend} if backend else {}
        stack = own if name == "ours" else others
        try:
            process = stack.enter_context(Process(python, f"benchmarks.peers.{module}_step", **env))
            facts = process.ask("prepare", **question)
            if "layers" in facts:
                weights = {"layers": facts.pop("layers")}
                facts["our_loss"] = running.processes["ours"].ask("loss", **question, **weights)
        except Unavailable as reason:
            if name == "ours":
                raise invalid(str(case), "a step that runs", reason) from reason
            running.skipped[name] = str(reason)
            continue
        running.processes[name], running.facts[name] = process, {**process.about, **facts}
    return running


def measured(case: Case, running: Running, plain: Process | None, peak: float, repeats: int) -> Row:
    """Times all ways of a case in turn.

    Args:
        case: The case.
        running: The ways.
        plain: Ours without attention, to be timed with them.
        peak: Operations per second of the device.
        repeats: Number of measurements of each way.
    """
    processes = running.processes | ({"without": plain} if plain else {})
    seconds = measure.seconds(
        {name: Timed(process) for name, process in processes.items()},
        repeats=repeats,
        least=0.0 if jax.default_backend() == "cpu" else 0.3,
    )
    mine = seconds["ours"]["median"]
    return {
        **case._asdict(),
        "seconds": seconds,
        "images_per_second": {n: case.batch / each["median"] for n, each in seconds.items()},
        "speedup": {name: each["median"] / mine for name, each in seconds.items()},
        "memory": {name: each.ask("memory") for name, each in running.processes.items()},
        "utilisation": running.facts["ours"]["model_flops"] / mine / peak,
        "peak": peak,
        "facts": running.facts,
        "skipped": running.skipped,
    }


def run(
    models: tuple[str, ...] = tables.MODELS,
    batches: tuple[int, ...] = (),
    dtypes: tuple[str, ...] = (),
    peers: tuple[str, ...] = tuple(tables.STEPS),
    repeats: int = 3,
    size: int = 0,
    compile: bool = False,
    tensorflow_python: str = sys.executable,
    torch_python: str = sys.executable,
) -> None:
    """Measures all cases and writes their rows.

    Args:
        models: Names of models, with and without _sa.
        batches: Batch sizes; by default 8 on a CPU, 64 on an accelerator.
        dtypes: float32 or bfloat16; by default both on an accelerator, float32 on a CPU.
        peers: Of keras_tensorflow, keras_jax and torch.
        repeats: Number of measurements of each way.
        size: Height and width of the images; 0 for the published size.
        compile: Whether PyTorch compiles on a CPU too.
        tensorflow_python: An interpreter with TensorFlow and Keras.
        torch_python: An interpreter with PyTorch, torchvision and timm.
    """
    platform = jax.default_backend()
    for field, given, known in (("models", models, tables.MODELS), ("peers", peers, tables.STEPS)):
        for name in given:
            if name not in known:
                raise unknown(f"--{field}", name, known)
    batches = batches or ((8,) if platform == "cpu" else (64,))
    dtypes = dtypes or (("float32",) if platform == "cpu" else ("bfloat16", "float32"))
    interpreters = {"keras_tensorflow": tensorflow_python, "torch": torch_python}
    pythons = {name: interpreters.get(name, sys.executable) for name in peers}
    peak = measure.limits(dtypes)["flops_per_second"]
    rows: list[Row] = []
    # Our process of the case before is kept, to be timed with the same model with attention.
    with contextlib.ExitStack() as last:
        before: tuple[Case, Process] | None = None
        for dtype, batch, name in itertools.product(dtypes, batches, models):
            case = Case(name, batch, dtype, size or registry.find(name).image_size)
            plain = case._replace(model=name.removesuffix("_sa"))
            with contextlib.ExitStack() as own, contextlib.ExitStack() as others:
                running = start(case, pythons, compile, own, others)
                same = before and before[0] == plain != case and name not in SMALLER
                without = before[1] if before and same else None
                rows.append(measured(case, running, without, peak[dtype], repeats))
                last.pop_all().close()
                last.push(own.pop_all())
                before = case, running.processes["ours"]
            # Written after each case, so that a run that is cut off leaves its results.
            of = ("model", "batch", "dtype")
            result = measure.write("train_step", rows, case=of, platform=platform)
            print(tables.train_step(result | {"rows": rows[-1:]}).splitlines()[2], flush=True)


if __name__ == "__main__":
    measure.command_line(run)
