"""Our models against the same models in Keras 3: outputs, gradients and training.

    python -m benchmarks.parity [--models=irv2_sa,resnet34]
    python -m benchmarks.parity --training [--models=...]

See ``references/keras_parity.py`` for what is compared, and how weights are drawn. Results replace
earlier ones of the same models. Exit status 1 means that a bound is exceeded.
"""

import gc
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import keras

from benchmarks import measure
from jaxattn import run_dir
from jaxattn.errors import unknown
from references import keras_models, keras_parity


def add(out: Path, kind: str, rows: Sequence[dict]) -> None:
    """Adds rows to the result file."""
    result = json.loads(out.read_text()) if out.is_file() else {}
    machine = measure.machine()
    machine["versions"]["keras"] = keras.__version__
    result |= {"benchmark": "parity", "command": "python -m benchmarks.parity", "machine": machine}
    result["bounds"] = keras_parity.BOUNDS
    result.setdefault(kind, {}).update({row["model"]: row for row in rows})
    known = list(keras_models.names())
    result[kind] = dict(sorted(result[kind].items(), key=lambda row: known.index(row[0])))
    run_dir.write_json(out, result)


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
    out = Path(os.environ.get("JAXATTN_RESULTS", measure.RESULTS)) / "parity.json"
    failed = False
    for name in models or known:
        if training:
            row = keras_parity.compare_training(name, 20, 8, keras_parity.TRAINED[name])
        else:
            row = keras_parity.compare_outputs(name, range(2), 1)
        add(out, "training" if training else "outputs", [row])
        beyond = keras_parity.exceeded(row)
        failed |= bool(beyond)
        print(f"{name}: {'exceeds ' + ', '.join(beyond) if beyond else 'ok'}", flush=True)
        jax.clear_caches()  # the programs are large and not used again
        gc.collect()
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    measure.command_line(run)
