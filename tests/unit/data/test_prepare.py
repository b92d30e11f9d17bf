"""The command line: what it prints, where, and how it ends."""

import json

import pytest

from jaxattn import prepare
from jaxattn.data.sources import SOURCES, ham10000
from jaxattn.data.tfds import reader


@pytest.fixture
def run(command, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments: command(prepare, f"--out={tmp_path / 'out'}", *arguments)


def test_a_whole_folder(run, dataverse, tmp_path):
    status, out, err = run("--dataset=ham10000", f"--source={dataverse}", "--size=30")
    assert status == 0
    cells = {tuple(line.replace("│", " ").split()) for line in out.splitlines()}
    counts = {("bkl", "2"), ("nv", "1"), ("images", "8"), ("lesions", "7"), ("masks", "8")}
    assert counts <= cells
    assert "writing" in err
    assert "writing" not in out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["images"], report["size"]) == (8, 30)
    assert reader.load(tmp_path / "out").records[0]["image"].shape == (30, 40, 3)


def test_bad_files_end_it_with_one_line_unless_skipped(run, kaggle, tmp_path):
    bad = next(kaggle.glob("*/ISIC_0000003.jpg"))
    bad.write_bytes(bad.read_bytes()[:300])
    arguments = ["--dataset=ham10000", f"--source={kaggle}"]
    status, _, err = run(*arguments)
    assert status == 2
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert str(bad) in last
    assert not (tmp_path / "out").exists()
    status, out, _ = run(*arguments, "--skip-bad")
    assert status == 0
    assert "skipped: 1 unreadable image: ISIC_0000003" in out


def test_a_wrong_command_line(run, tmp_path):
    status, out, err = run("--dataset=ham10000", f"--source={tmp_path}", "more")
    assert (status, out) == (2, "")
    assert err == "error: command line: expected only flags, got 'more'\n"
    status, _, err = run("--dataset=ham1000", f"--source={tmp_path}")
    assert status == 2
    assert err.startswith("error: --dataset: expected one of bcn20000, derm7pt, folder, ham10000, ")
    assert "(did you mean 'ham10000'?), got 'ham1000'" in err


def test_a_source_registered_elsewhere(run, kaggle, tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "mine", ham10000.read)
    assert run("--dataset=mine", f"--source={kaggle}")[0] == 0
    assert len(reader.load(tmp_path / "out")) == 8
