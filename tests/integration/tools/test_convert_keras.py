"""The command line: there and back, what it prints and how it ends."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxattn

keras = pytest.importorskip("keras")
# Keras' own, with a newer NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(jaxattn.__file__).parents[1]
COMMAND = [sys.executable, ROOT / "tools" / "convert_keras.py"]


def run(*flags):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*COMMAND, *flags], capture_output=True, text=True, env=env, cwd="/", timeout=300
    )


def test_there_and_back(tmp_path):
    """The smallest network of keras.applications that there is here, without its top."""
    model = keras.applications.DenseNet121(weights=None, include_top=False, input_shape=(32, 32, 3))
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(w.shape, np.float32) for w in model.weights]
    model.set_weights(values)
    file, folder = tmp_path / "in.weights.h5", tmp_path / "out"
    model.save_weights(file)
    done = run("--model=keras_densenet121", f"--weights={file}", f"--out={folder}")
    assert done.returncode == 0, done.stderr
    # Keras prints 7,037,504 parameters for it; 121 batch norms of 4 arrays, 120 kernels.
    assert done.stdout == f"604 arrays, 7,037,504 numbers: {folder}\n"
    notes = json.loads((folder / "weights.json").read_text())
    assert notes["model"] == {"name": "keras_densenet121"}
    assert notes["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()

    done = run("--to=keras", f"--weights={folder}", f"--out={tmp_path / 'back.h5'}")
    assert done.returncode == 0, done.stderr
    model.set_weights([np.zeros_like(value) for value in values])
    model.load_weights(tmp_path / "back.h5")
    for ours, theirs in zip(model.get_weights(), values, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model=irv2_sa"],
            "text.h5: expected a Keras .h5, .weights.h5 or .keras file, got neither HDF5 nor a zip",
        ),
        ([], "--model: expected the name of a model, got nothing"),
        (["--to=keras"], "text.h5: expected a folder that a tools/convert_"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, flags, message):
    (tmp_path / "text.h5").write_text("no weights")
    done = run(f"--weights={tmp_path / 'text.h5'}", f"--out={tmp_path / 'out'}", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
