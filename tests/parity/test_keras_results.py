"""The committed comparison with Keras: within its bounds, and open about what it lacks."""

import json
import re

import pytest

keras = pytest.importorskip("keras")
if keras.backend.backend() != "jax":
    pytest.skip(f"Keras runs on {keras.backend.backend()}, not on JAX", allow_module_level=True)

from benchmarks import measure  # noqa: E402
from references import keras_models, keras_parity  # noqa: E402

PATH = measure.RESULTS / "parity_cpu.json"
ROWS = json.loads(PATH.read_text(encoding="utf-8"))["rows"] if PATH.is_file() else []
NAMES = {"outputs": keras_models.names(), "training": tuple(keras_parity.TRAINED)}


@pytest.mark.parametrize("kind", NAMES)
def test_the_page_names_the_models_without_a_row(kind):
    page = (measure.ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    missing = [name for name in NAMES[kind] if not any(_is_of(row, kind, name) for row in ROWS)]
    assert not missing or f"**Not compared** ({kind}): {', '.join(missing)}." in page


def _is_of(row, kind, name):
    return (row["kind"], row["model"]) == (kind, name)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['kind']}-{row['model']}")
def test_a_row_holds(row):
    assert keras_parity.problems(row) == []
    assert row["batch"] >= 2
    assert row["kind"] == "training" or row["seeds"] == [0, 1]
    assert re.fullmatch("[0-9a-f]{7,}", row["commit"]), "made of code that was not committed"
    assert row["model"] in row["command"] or "--models" not in row["command"]
