"""Tables of all results, and the pages that are made of them."""

import json
import re

import pytest

from benchmarks import render, tables
from jaxattn.errors import InputError

MACHINE = {
    "device": "1 x toaster",
    "processor": "z80",
    "cores": 1,
    "versions": {"jax": "9"},
    "load_before": 0.25,
}


def test_the_pages_are_up_to_date(monkeypatch):
    monkeypatch.delenv("JAXATTN_RESULTS", raising=False)
    results = render.read(render.measure.RESULTS)
    assert (render.HERE / "README.md").read_text(encoding="utf-8") == render.page(results)
    text = render.PERFORMANCE.read_text(encoding="utf-8")
    assert render.with_speeds(text, results) == text


def patches(name, attention):
    rows = [
        {"way": way, "patches_per_second": rate, "of_plain": rate / 10, "rounds": [rate]}
        for way, rate in (("attention", attention), ("plain", 10.0))
    ]
    facts = {"benchmark": "patch_throughput", "backbone": name, "dtype": "float32"}
    return {**facts, "command": "python x.py", "machine": MACHINE, "batch": [2, 9, 8], "rows": rows}


def test_a_page_has_goals_command_machine_and_table(tmp_path):
    for name, attention in (("b", 9.0), ("a", 9.8)):
        (tmp_path / f"{name}.json").write_text(json.dumps(patches(name, attention)))
    page = render.page(render.read(tmp_path))
    line = "| patch_throughput, 1 x toaster | 0.97× plain |"
    assert f"{line} 0 of 1 | b, float32: 0.9 |" in page
    assert f"{line} 1 of 1: 0.98 |  |" in page
    assert page.count("## [patch_throughput.py](patch_throughput.py)") == 1
    assert page.count("    python x.py\n") == 2
    assert page.count("1 x toaster; z80, 1 cores; jax 9; load 0.2.") == 2
    assert "| attention | 9.0 (9.0) | 0.900× | 0.97× plain **missed** |" in page
    assert page.index("a, float32, 2") < page.index("b, float32, 2")  # by the files' names
    assert "Not measured yet." in page
    assert not re.findall("^{.*}$", page, re.M)


def test_the_template_has_a_place_for_every_benchmark():
    template = (render.HERE / "template.md").read_text(encoding="utf-8")
    assert re.findall(r"^{(\w+)}$", template, re.M) == ["goals", *tables.TABLES]


def test_each_command_and_commit_is_shown_once():
    rows = [{"command": "python x.py --a", "commit": "abc"}, {"command": "python x.py --b"}]
    shown = "    python x.py --a  # at abc\n    python x.py --b"
    assert render.commands({"command": "python x.py", "rows": [*rows, *rows]}) == shown
    assert render.commands({"command": "python x.py", "rows": [{}]}) == "    python x.py"


def test_speeds_are_written_between_their_lines():
    row = {"model": "resnet50_sa", "batch": 8, "size": 224, "dtype": "float32"}
    fast = row | {"speedup": {"keras_tensorflow": 1.2345, "torch": 0.9, "without": 0.974}}
    unjudged = row | {"batch": 16, "speedup": {"keras_tensorflow": 7.0}}
    result = {"benchmark": "train_step", "platform": "cpu", "rows": [unjudged, fast]}
    results = {"train_step": [result | {"machine": MACHINE}]}
    begin, end = render.SPEEDS
    text = render.with_speeds(f"a\n{begin}old\n{end}b\n", results)
    assert text.startswith(f"a\n{begin}\n| ")
    assert text.endswith(f"1 x toaster; z80, 1 cores; jax 9; load 0.2.\n\n{end}b\n")
    assert "| resnet50_sa | 8 × 224², float32 | 1.23× | – | 0.90× | 0.97× |" in text
    assert "7.00" not in text
    assert "old" not in text
    with pytest.raises(InputError, match="performance.md: expected the lines .*, got"):
        render.with_speeds(f"a\n{begin}old\n", results)


def test_a_page_that_is_out_of_date_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "PERFORMANCE", tmp_path / "missing.md")
    monkeypatch.setattr(render, "HERE", tmp_path)
    monkeypatch.setattr(render, "page", lambda results: "new\n")
    with pytest.raises(SystemExit, match="README.md is not up to date"):
        render.run(check=True)
    (tmp_path / "README.md").write_text("new\n")
    render.run(check=True)


@pytest.mark.parametrize("text", ['{"benchmark": "nonsense"}', "[]", "{"])
def test_a_file_that_is_no_result_is_named(text, tmp_path):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(InputError, match="odd.json.*expected"):
        render.read(tmp_path)


def test_spans_are_rounded_and_one_number_if_equal():
    assert tables.span([2.004, 1.0, 1.5]) == "1–2"
    assert tables.span([0.12345]) == "0.123"
    assert tables.span([193.34, 193.2]) == "193"
    assert tables.span([99.9, 56_789.0]) == "99.9–56,789"


def test_a_peer_that_computes_something_else_is_marked():
    ours = {"parameters": 10, "kernels": 8}
    same = {"parameters": 10, "kernels": 8, "loss": 2.0, "our_loss": 2.0}
    facts = {"ours": ours, **{name: dict(same) for name in tables.STEPS}}
    row = {"dtype": "float32", "facts": facts}
    assert not any(tables.differs(name, row) for name in tables.STEPS)
    facts["keras_jax"]["our_loss"] = 2.01
    facts["keras_tensorflow"]["our_loss"] = float("nan")
    facts["torch"]["kernels"] = 9
    assert all(tables.differs(name, row) for name in tables.STEPS)


def run_row(name, seed, value, **further):
    about = {"minutes": 1.0, "epochs": 2, "device": "toaster", "versions": {"jax": "9"}}
    facts = {"seed": seed, "split_seed": 0, "test_images": 50, **about}
    return {"row": name, "values": {"accuracy": value}, **facts, **further}


def test_runs_are_averaged_over_seeds_or_shown_beside_published_numbers():
    rows = [run_row("net, float32", seed, 0.80 + seed / 50) for seed in range(3)]
    result = {"benchmark": "runs", "rows": rows, "percent": False, "note": ""}
    text = tables.runs(result)
    assert "| net, float32 | 0.820 ± 0.020 |" in text
    assert "seed and seed of the split: 0 and 0, 1 and 0, 2 and 0" in text
    rows = [run_row("a", 0, 0.5, reference={"accuracy": 0.6}), run_row("b", 0, None)]
    text = tables.runs(result | {"rows": rows, "percent": True, "note": "One fold."})
    assert "| a | 50.0 (60.0) | 2 | 1 |" in text
    assert "| b | - | 2 | 1 |" in text
    assert text.endswith("One fold. toaster, jax 9.")


def test_rows_are_sorted_by_type_batch_and_model():
    def row(model, batch=8, dtype="float32"):
        return {"model": model, "batch": batch, "dtype": dtype}

    rows = [row("vgg16"), row("irv2"), row("irv2", batch=2), row("vgg16", dtype="bfloat16")]
    found = tables._ordered_steps({"rows": rows})
    assert found == [rows[3], rows[2], rows[1], rows[0]]
