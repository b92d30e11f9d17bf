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
