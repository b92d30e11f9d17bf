import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxattn.errors import InputError

render = pytest.importorskip("benchmarks.render")
pytest.importorskip("keras")  # of the table of parity

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_results_give():
    command = [sys.executable, "benchmarks/render.py", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def grouped_conv(plain_ms):
    return {
        "benchmark": "grouped_conv",
        "command": "python benchmarks/grouped_conv.py",
        "machine": {
            "device": "1 x toaster",
            "processor": "z80",
            "cores": 1,
            "versions": {"jax": "9"},
            "load_before": 0.25,
        },
        "batch": 3,
        "rows": [
            {
                "shape": [4, 64, 1],
                "ways": {
                    "taps": {"wall_ms": 2.0, "cpu_ms": 3.0},
                    "plain": {"wall_ms": plain_ms, "cpu_ms": 6.0},
                },
            }
        ],
    }


def patches(name, attention):
    rows = [
        {"way": way, "patches_per_second": rate, "rounds": [rate]}
        for way, rate in (("attention", attention), ("plain", 10.0))
    ]
    facts = {"benchmark": "patch_throughput", "backbone": name, "dtype": "float32"}
    machine = grouped_conv(1.0)["machine"]
    return {**facts, "command": "python x.py", "machine": machine, "batch": [2, 9, 8], "rows": rows}


def test_goals_are_counted_and_the_missed_named(tmp_path):
    for name, attention in (("a", 9.0), ("b", 9.8)):
        (tmp_path / f"{name}.json").write_text(json.dumps(patches(name, attention)))
    page = render.page(tmp_path)
    line = "| patch_throughput, 1 x toaster | 0.97× plain |"
    assert f"{line} 0 of 1 | a, float32: 0.9 |" in page
    assert f"{line} 1 of 1: 0.98 |  |" in page


def test_each_row_s_command_and_commit_is_told_once():
    rows = [{"command": "python x.py --a", "commit": "abc"}, {"command": "python x.py --b"}]
    told = "    python x.py --a  # at abc\n    python x.py --b"
    assert render.commands({"command": "python x.py", "rows": [*rows, *rows]}) == told
    assert render.commands({"command": "python x.py", "rows": [{}]}) == "    python x.py"


def test_speeds_stand_between_their_lines():
    row = {"model": "resnet50_sa", "batch": 8, "size": 224, "dtype": "float32"}
    fast = row | {"speedup": {"keras_tensorflow": 1.2345, "torch": 0.9, "without": 0.974}}
    unjudged = row | {"batch": 16, "speedup": {"keras_tensorflow": 7.0}}
    machine = grouped_conv(1.0)["machine"]
    result = {"platform": "cpu", "machine": machine, "rows": [unjudged, fast]}
    begin, end = render.SPEEDS
    text = render.with_speeds(f"a\n{begin}old\n{end}b\n", {"train_step": [result]})
    assert text.startswith(f"a\n{begin}\n| ")
    assert text.endswith(f"1 x toaster; z80, 1 cores; jax 9; load 0.2.\n\n{end}b\n")
    assert "| resnet50_sa | 8 × 224², float32 | 1.23× | – | 0.90× | 0.97× |" in text
    assert "7.00" not in text
    assert "old" not in text
    with pytest.raises(InputError, match="README.md: the lines .* wanted"):
        render.with_speeds(f"a\n{begin}old\n", {"train_step": [result]})


def test_a_page_has_command_machine_and_table(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(grouped_conv(5.0)))
    (tmp_path / "a.json").write_text(json.dumps(grouped_conv(9.0)))
    page = render.page(tmp_path)
    assert page.count("## [grouped_conv.py](grouped_conv.py)") == 1
    assert page.count("    python benchmarks/grouped_conv.py\n") == 2
    assert page.count("1 x toaster; z80, 1 cores; jax 9; load 0.2.") == 2
    assert "| 4×4×64, 1 | 2.0 (3.0) | 5.0 (6.0) | 2.5× |" in page
    assert page.index("4.5×") < page.index("2.5×")  # by the files' names


@pytest.mark.parametrize("text", ['{"benchmark": "nonsense"}', "[]", "{"])
def test_a_file_that_is_no_result_is_named(text, tmp_path):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(InputError, match="odd.json: .*wanted"):
        render.page(tmp_path)
