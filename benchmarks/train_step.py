"""Images per second of the whole training step of the published models, against all peers.

``benchmarks/README.md`` says what is measured and how.

    python -m benchmarks.train_step [--models=irv2_sa,resnet50] [--batches=8] [--dtypes=float32]
"""

import contextlib
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, tables
from benchmarks.process import Peers, Process, Unavailable
from jaxattn.data.augment import NORMALISATIONS
from jaxattn.errors import unknown
from jaxattn.models import registry

#: The peers' modules.
STEP = "{}_step"
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

    def question(self) -> Row:
        """The case, with random ``images`` of bytes, the same ``normalised``, and ``labels``."""
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (self.batch, self.size, self.size, 3), np.uint8)
        normalise = NORMALISATIONS[registry.find(self.model).normalisation]
        normalised = np.array(normalise(jnp.asarray(images, jnp.float32) / 255.0))
        labels = rng.integers(0, CLASSES, self.batch, np.int32)
        arrays = {"images": images, "normalised": normalised, "labels": labels}
        return {**self._asdict(), "classes": CLASSES, **arrays}


def measured(
    case: Case, own: Peers, others: Peers, plain: Process | None, peak: float, repeats: int
) -> Row:
    """Times all ways of a case in turn.

    Args:
        case: The case.
        own: Our process.
        others: The peers.
        plain: Ours without attention, to be timed with them.
        peak: Operations per second of the device.
        repeats: Number of measurements of each way.

    Raises:
        InputError: Ours does not run.
    """
    question = case.question() | {"training": True}
    facts = own.prepare(**question)
    for name, told in others.prepare(**question).items():
        try:
            if "layers" in told:
                weights = {"layers": told.pop("layers")}
                told["our_loss"] = own.ready["ours"].ask("loss", **question, **weights)
            facts[name] = told
        except Unavailable as reason:
            others.skipped[name] = str(reason)
            del others.ready[name]
    processes = own.ready | others.ready
    seconds = measure.seconds(
        processes | ({"without": plain} if plain else {}),
        repeats=repeats,
        least=0.0 if jax.default_backend() == "cpu" else 0.3,
    )
    mine = seconds["ours"]["median"]
    return {
        **case._asdict(),
        "seconds": seconds,
        "speedup": {name: each["median"] / mine for name, each in seconds.items()},
        "memory": {name: each.ask("memory") for name, each in processes.items()},
        "utilisation": facts["ours"]["model_flops"] / mine / peak,
        "peak": peak,
        "facts": facts,
        "skipped": others.skipped,
    }


def run(
    models: tuple[str, ...] = tables.MODELS,
    batches: tuple[int, ...] = (),
    dtypes: tuple[str, ...] = (),
    peers: tuple[str, ...] = tables.STEPS,
    repeats: int = 3,
    size: int = 0,
) -> None:
    """Measures all cases and writes their rows.

    Args:
        models: Names of models, with and without _sa.
        batches: Batch sizes; by default 8 on a CPU, 64 on an accelerator.
        dtypes: float32 or bfloat16; by default both on an accelerator, float32 on a CPU.
        peers: Of keras_tensorflow, keras_jax and torch.
        repeats: Number of measurements of each way.
        size: Height and width of the images; 0 for the published size.
    """
    platform = jax.default_backend()
    for field, given, known in (("models", models, tables.MODELS), ("peers", peers, tables.STEPS)):
        for name in given:
            if name not in known:
                raise unknown(f"--{field}", name, known)
    batches = batches or ((8,) if platform == "cpu" else (64,))
    dtypes = dtypes or (("float32",) if platform == "cpu" else ("bfloat16", "float32"))
    peak = measure.limits(dtypes)["flops_per_second"]
    rows: list[Row] = []
    # Our process of the case before is kept, to be timed with the same model with attention.
    before, last = None, Peers((), STEP)
    with contextlib.ExitStack() as ours:
        for dtype, batch, name in itertools.product(dtypes, batches, models):
            case = Case(name, batch, dtype, size or registry.find(name).image_size)
            plain = case._replace(model=name.removesuffix("_sa"))
            same = before == plain != case and name not in SMALLER
            own = ours.enter_context(Peers(["ours"], STEP))
            with last, Peers(peers, STEP) as others:
                without = last.ready["ours"] if same else None
                rows.append(measured(case, own, others, without, peak[dtype], repeats))
            before, last = case, own
            # Written after each case, so that a run that is cut off leaves its results.
            of = ("model", "batch", "dtype")
            result = measure.write("train_step", rows, case=of, platform=platform)
            print(tables.train_step(result | {"rows": rows[-1:]}).splitlines()[2], flush=True)


if __name__ == "__main__":
    measure.command_line(run)
