"""The committed comparison with Keras: complete, within its bounds, and of today's code."""

import json
import re

import pytest

keras = pytest.importorskip("keras")
if keras.backend.backend() != "jax":
    pytest.skip(f"Keras runs on {keras.backend.backend()}, not on JAX", allow_module_level=True)

from benchmarks import measure, parity  # noqa: E402
from references import keras_models, keras_parity  # noqa: E402

PATH = measure.RESULTS / "parity_cpu.json"
ROWS = json.loads(PATH.read_text(encoding="utf-8"))["rows"] if PATH.is_file() else []
NAMES = {"outputs": keras_models.names(), "training": tuple(keras_parity.TRAINED)}
AGAIN = "run python -m benchmarks.parity --models={} and python -m benchmarks.render"


@pytest.mark.parametrize("kind", NAMES)
def test_every_model_has_a_row(kind):
    assert {row["model"] for row in ROWS if row["kind"] == kind} == set(NAMES[kind])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['kind']}-{row['model']}")
def test_a_row_holds(row):
    assert keras_parity.problems(row) == []
    assert row["batch"] >= 2
    assert row["kind"] == "training" or row["seeds"] == [0, 1]
    assert re.fullmatch("[0-9a-f]{7,}", row["commit"]), "made of code that was not committed"
    assert not parity.stale(row), AGAIN.format(row["model"])
    assert row["model"] in row["command"] or "--models" not in row["command"]
