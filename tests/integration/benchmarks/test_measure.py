import json
import sys

import pytest
from absl import flags

from benchmarks import measure


@pytest.fixture
def write(results, monkeypatch):
    """Writes rows as a run with the given argument does, and returns the file's content."""
    monkeypatch.setattr(measure, "COMMIT", "abc1234")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)

    def write(argument, *rows, case=("model", "shape")):
        monkeypatch.setattr(sys, "argv", ["some.py", argument])
        written = measure.write("some", rows, case=case)
        (path,) = results.iterdir()
        assert json.loads(path.read_text(encoding="utf-8")) == written
        return written

    return write


def row(model, value, shape=(8, 8)):
    return {"model": model, "shape": list(shape), "value": value}


def test_earlier_rows_are_kept_unless_measured_again(write):
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


def test_rows_of_another_machine_are_dropped(write, monkeypatch):
    machine = {"processor": "some", "load_before": 1.0}
    monkeypatch.setattr(measure, "machine", lambda: machine)
    write("", row("a", 1))
    monkeypatch.setattr(measure, "machine", lambda: machine | {"load_before": 2.0})
    assert len(write("", row("b", 1))["rows"]) == 2
    monkeypatch.setattr(measure, "machine", lambda: machine | {"processor": "other"})
    assert write("", row("c", 1))["rows"][0]["model"] == "c"


def test_ways_take_turns_and_calls_are_averaged():
    order = []

    class Way:
        def __init__(self, name):
            self.name, self.taken = name, iter([9.0, 3.0, 1.0, 2.0])

        def time(self, calls):
            order.append((self.name, calls))
            return next(self.taken)

    found = measure.seconds({"a": Way("a"), "b": Way("b")}, repeats=3, calls=5)
    assert order == [("a", 1), ("b", 1), *[("a", 5), ("b", 5)] * 3]
    wanted = {"median": 2.0, "min": 1.0, "max": 3.0, "all": [3.0, 1.0, 2.0]}
    assert found == {"a": wanted, "b": wanted}


def test_flags_come_from_the_arguments(monkeypatch):
    given = flags.FlagValues()
    monkeypatch.setattr(measure.flags, "FLAGS", given)
    for kind in ("integer", "string", "bool", "list"):
        define = getattr(flags, f"DEFINE_{kind}")

        def own(*arguments, define=define, **options):
            return define(*arguments, flag_values=given, **options)

        monkeypatch.setattr(measure.flags, f"DEFINE_{kind}", own)
    monkeypatch.setattr(measure.runtime, "setup", lambda devices: called.append(devices))
    called = []

    def run(name: str, sizes: tuple[int, ...] = (1,), count: int = 2, fast: bool = False) -> None:
        """Runs.

        Args:
            name: A name
                in two lines.
            sizes: Sizes.
            count: A count.
            fast: Whether.
        """
        called.append((name, sizes, count, fast))

    def run_main(main):
        given(["x", "--name=a", "--sizes=3,4", "--fast"])
        main([])

    monkeypatch.setattr(measure.cli, "run_main", run_main)
    measure.command_line(run, devices=3)
    assert called == [3, ("a", (3, 4), 2, True)]
    assert given["name"].help == "A name in two lines."
