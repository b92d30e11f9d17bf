"""Our models against the same models in Keras 3: outputs, gradients and training.

    python -m benchmarks.parity [--models=irv2_sa,resnet34]
    python -m benchmarks.parity --training [--models=...]

See ``references/keras_parity.py`` for what is compared, and how weights are drawn. Results replace
earlier ones of the same models on the same machine. Exit status 1 means that a bound is exceeded,
that a comparison failed, or, of training, that a mutation would not be found.
"""

import contextlib
import gc
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import keras

from benchmarks import measure
from jaxattn.errors import unknown
from references import keras_models, keras_parity

#: What rows say something of: these files, as far as functions in them ran. The registry gives
#: models their names and options alone.
COVERED = (
    "jaxattn/convert",
    "jaxattn/models",
    "jaxattn/ops",
    "jaxattn/optimizers.py",
    "references",
)
NOT_COVERED = ("jaxattn/models/registry.py", "jaxattn/models/attention/registry.py")


@contextlib.contextmanager
def files_that_run() -> Iterator[set[str]]:
    """Collects the covered files, relative to the repository, whose functions are called."""
    found: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        # Importing a module calls its body, which is no function.
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            found.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)
        inside = {Path(each) for each in found if each.startswith(f"{measure.ROOT}{os.sep}")}
        names = {each.relative_to(measure.ROOT).as_posix() for each in inside}
        found.clear()
        found |= {each for each in names if each.startswith(COVERED)} - {*NOT_COVERED}


def compare(name: str, training: bool = False) -> dict[str, Any]:
    """A row of the result: a comparison, or why it failed."""
    with files_that_run() as files:
        try:
            if training:
                row = keras_parity.compare_training(name)
            else:
                row = keras_parity.compare_outputs(name, range(2), 2)
        except RuntimeError as error:
            row = {"model": name, "failed": str(error)}
    kind = "training" if training else "outputs"
    more = {"keras": keras.__version__, "files": sorted(files), "digest": measure.digest([*files])}
    return {"kind": kind, **row, **more}


def add(row: dict[str, Any]) -> None:
    """Adds a row to the result file."""
    measure.write(
        "parity",
        [row],
        case=("kind", "model"),
        bounds=keras_parity.BOUNDS,
        models={"outputs": keras_models.names(), "training": [*keras_parity.TRAINED]},
    )


def run(models: tuple[str, ...] = (), training: bool = False) -> None:
    """Compares all models and adds their rows to the result.

    Args:
        models: Names of the models; all by default.
        training: Whether to compare training instead of outputs and gradients.
    """
    known = list(keras_parity.TRAINED if training else keras_models.names())
    for name in models:
        if name not in known:
            raise unknown("--models", name, known)
    failed = False
    for name in models or known:
        row = compare(name, training)
        add(row)
        problems = keras_parity.problems(row)
        failed |= bool(problems)
        print(f"{name}: {', '.join(problems) or 'ok'}", flush=True)
        jax.clear_caches()  # the programs are large and not used again
        gc.collect()
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    measure.command_line(run)
