"""Rows of the comparison with Keras name what made them, and know when they are out of date."""

import json

import pytest

keras = pytest.importorskip("keras")
if keras.backend.backend() != "jax":
    pytest.skip(f"Keras runs on {keras.backend.backend()}, not on JAX", allow_module_level=True)

from benchmarks import measure, parity, tables  # noqa: E402
from jaxattn.models import registry  # noqa: E402
from jaxattn.ops.pool import max_pool  # noqa: E402

FOUND = {"difference": 1e-6, "at": "logits"}
OUTPUTS = {
    "kind": "outputs",
    "image_size": 64,
    "batch": 2,
    "seeds": [0, 1],
    "differences": {
        "ordinary": dict.fromkeys(("logits", "endpoints"), FOUND),
        "away from kinks": dict.fromkeys(("logits", "endpoints", "gradients"), FOUND),
    },
    "endpoints": 3,
    "parameters": 5,
    "keras": "3.0",
    "files": [],
    "digest": measure.digest([]),
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Adds rows; returns the result so far."""
    monkeypatch.setenv("JAXATTN_RESULTS", str(tmp_path))

    def write(*rows):
        for row in rows:
            parity.add(row)
        return json.loads((tmp_path / "parity_cpu.json").read_text())

    return write


def test_rows_of_other_models_are_kept_with_their_own_command(written, monkeypatch):
    monkeypatch.setattr("sys.argv", ["parity.py", "first"])
    written(OUTPUTS | {"model": "vgg16"}, OUTPUTS | {"model": "irv2"})
    monkeypatch.setattr("sys.argv", ["parity.py", "second"])
    monkeypatch.setattr(measure, "COMMIT", "1234567")
    rows = written(OUTPUTS | {"model": "irv2", "batch": 4})["rows"]
    assert [(row["model"], row["batch"], row["command"].split()[-1]) for row in rows] == [
        ("vgg16", 2, "first"),
        ("irv2", 4, "second"),
    ]
    assert rows[1]["commit"] == "1234567"


def test_the_table_shows_failures_and_what_is_missing(written):
    far = {**OUTPUTS["differences"], "ordinary": dict.fromkeys(("logits", "endpoints"), FOUND)}
    far["ordinary"]["endpoints"] = {"difference": 1.0, "at": "conv_7b"}
    page = tables.parity(
        written(
            OUTPUTS | {"model": "vgg16", "differences": far},
            {"kind": "outputs", "model": "irv2", "failed": "ties remain", "keras": "3.0"},
        )
    )
    assert "| vgg16 | 64, 2 | 0, 1 | 3 | 5 | 1.0e-06 | **1.0e+00** | 1.0e-06 |" in page
    assert "**irv2 failed**: ties remain" in page
    assert "**Not compared** (outputs): irv2_sa, densenet201" in page
    assert "**Not compared** (training): koefler_cnn_sa" in page


def test_files_that_run_are_noted():
    with parity.files_that_run() as files:
        registry.create("vgg16", 7)
        max_pool(parity.jax.numpy.zeros((1, 2, 2, 3)), (2, 2), (2, 2), "VALID")
    assert "jaxattn/ops/pool.py" in files
    assert all(name.startswith(("jaxattn/", "references/")) for name in files)
    assert not files & {"jaxattn/models/registry.py", "jaxattn/models/backbones/densenet.py"}


def test_a_row_is_stale_once_a_file_it_covers_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / name).write_text(name)
    row = {"files": ["a.py", "b.py"], "digest": measure.digest(["b.py", "a.py"])}
    (tmp_path / "c.py").write_text("changed")
    assert not measure.stale(row)
    (tmp_path / "b.py").write_text("b.py ")
    assert measure.stale(row)
    (tmp_path / "b.py").unlink()
    assert measure.stale(row)
    assert measure.stale({"model": "made before rows had a digest"})


def test_the_table_marks_rows_that_are_stale(written):
    page = tables.parity(written(OUTPUTS | {"model": "vgg16"}))
    assert "†" not in page
    page = tables.parity(written(OUTPUTS | {"model": "vgg16", "digest": "of other code"}))
    assert "| vgg16 † |" in page


def test_a_failed_comparison_is_a_row(monkeypatch):
    def fails(*_):
        raise RuntimeError("max pools still have ties")

    monkeypatch.setattr(parity.keras_parity, "compare_outputs", fails)
    row = parity.compare("vgg16")
    assert (row["kind"], row["model"], row["failed"]) == (
        "outputs",
        "vgg16",
        "max pools still have ties",
    )
