"""What files of results keep, and how goals and speeds are told."""

import json
import sys

import pytest

from benchmarks import measure


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes rows as a run with the given argument does, and returns what lies in the file."""
    monkeypatch.setenv("JAXATTN_RESULTS", str(tmp_path))
    monkeypatch.setattr(measure, "COMMIT", "abc1234")

    def write(argument, *rows, case=("model", "shape")):
        monkeypatch.setattr(sys, "argv", ["some.py", argument])
        path = measure.write("some", rows, case=case)
        return json.loads(path.read_text(encoding="utf-8"))

    return write


def row(model, value, shape=(8, 8)):
    return {"model": model, "shape": list(shape), "value": value}


def test_earlier_rows_stay_but_for_those_measured_again(write):
    write("--first", row("a", 1), row("b", 2), row("a", 3, shape=(4, 4)))
    result = write("--second", row("b", 20), row("c", 30))
    stamped = [(each["model"], each["value"], each["command"]) for each in result["rows"]]
    assert stamped == [
        ("a", 1, "python some.py --first"),
        ("b", 20, "python some.py --second"),
        ("a", 3, "python some.py --first"),
        ("c", 30, "python some.py --second"),
    ]
    assert {each["commit"] for each in result["rows"]} == {"abc1234"}


def test_without_a_case_a_run_replaces_all(write):
    write("--first", row("a", 1), case=())
    result = write("--second", row("b", 2), case=())
    assert result["rows"] == [row("b", 2)]
    assert result["command"] == "python some.py --second"


def test_rows_of_another_machine_do_not_stay(write, monkeypatch):
    machine = {"processor": "some", "load_before": 1.0}
    monkeypatch.setattr(measure, "machine", lambda: machine)
    write("", row("a", 1))
    monkeypatch.setattr(measure, "machine", lambda: machine | {"load_before": 2.0})
    assert len(write("", row("b", 1))["rows"]) == 2
    monkeypatch.setattr(measure, "machine", lambda: machine | {"processor": "other"})
    assert write("", row("c", 1))["rows"][0]["model"] == "c"


def test_a_span_is_rounded_and_one_number_where_it_is_one():
    assert measure.span([2.004, 1.0, 1.5]) == "1–2"
    assert measure.span([0.12345]) == "0.123"
    assert measure.span([193.34, 193.2]) == "193"
    assert measure.span([99.9, 56_789.0]) == "99.9–56,789"
