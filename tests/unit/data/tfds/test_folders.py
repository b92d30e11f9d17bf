"""A data set is there or can be finished at every moment; other data under its name is refused."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxattn import prepare, run_dir
from jaxattn.data import fingerprint, prepared
from jaxattn.data.sources import ham10000
from jaxattn.data.tfds import folders, reader, verify, writer
from jaxattn.errors import InputError


@pytest.fixture
def out(tmp_path, dataverse):
    writer.write(ham10000.read(dataverse), tmp_path / "out")
    return tmp_path / "out"


def beside(out):
    return sorted(path.name for path in out.parent.iterdir() if path.name.startswith("."))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_between_renames_a_data_set_is_left_or_finished(
    out, dataverse, monkeypatch, renames
):
    before = prepared.load(out).fingerprint
    done = []
    honest = type(out).rename

    def rename(self, target):
        if len(done) == renames:
            raise Killed
        done.append(target)
        return honest(self, target)

    monkeypatch.setattr(type(out), "rename", rename)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # nor does it clean up
    next(dataverse.glob("*/ISIC_0000005.jpg")).unlink()
    index = ham10000.read(dataverse)
    if renames < 2:
        with pytest.raises(Killed):
            writer.write(index, out, overwrite=True, skip_bad=True)
    else:
        writer.write(index, out, overwrite=True, skip_bad=True)
    monkeypatch.undo()
    assert beside(out)
    folders.recover(out)
    assert beside(out) == []
    after = prepared.load(out)
    assert (after.fingerprint == before) == (renames == 0)
    assert len(after) == (8 if renames == 0 else 7)


HOLD = """
import sys, time
from pathlib import Path
from jaxattn.data.tfds import folders
with folders.temporary(Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_leaves_is_removed_and_a_living_one_is_not(tmp_path, kaggle):
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        with pytest.raises(InputError, match="out: .* no other process is preparing, got"):
            writer.write(ham10000.read(kaggle), out)
        assert len(beside(out)) == 1
        process.kill()
    assert len(beside(out)) == 1
    writer.write(ham10000.read(kaggle), out)
    assert beside(out) == []


def test_the_fingerprint_is_of_ids_labels_lesions_and_pixels(tmp_path, out, dataverse):
    recorded = json.loads((out / "fingerprint.json").read_text())
    assert prepared.load(out).fingerprint == recorded

    def prepare_again(name):
        writer.write(ham10000.read(dataverse), tmp_path / name)
        return prepared.load(tmp_path / name).fingerprint

    assert prepare_again("same") == recorded
    table = dataverse / "HAM10000_metadata"
    text = table.read_text()
    table.write_text(text.replace("HAM_0000004", "HAM_0000044"))
    lesion = prepare_again("lesion")
    assert (lesion["labels"] == recorded["labels"], lesion["pixels"] == recorded["pixels"]) == (
        False,
        True,
    )
    table.write_text(text)
    one, other = (next(dataverse.glob(f"*/ISIC_000000{i}.jpg")) for i in (4, 5))
    one.write_bytes(other.read_bytes())
    pixels = prepare_again("pixels")
    assert (pixels["labels"] == recorded["labels"], pixels["pixels"] == recorded["pixels"]) == (
        True,
        False,
    )


def test_a_run_refuses_other_pixels_under_its_ids(tmp_path, out, dataverse):
    dataset = prepared.load(out)
    split = {"train": np.arange(4), "validation": np.arange(4, 5), "test": np.arange(5, 8)}
    run = tmp_path / "run"
    (run / "checkpoints" / "1").mkdir(parents=True)
    run_dir.record_split(run, split, dataset)
    run_dir.record_split(run, split, dataset)
    one, other = (next(dataverse.glob(f"*/ISIC_000000{i}.jpg")) for i in (4, 5))
    one.write_bytes(other.read_bytes())
    writer.write(ham10000.read(dataverse), out, overwrite=True)
    with pytest.raises(InputError, match="expected the pixels that it recorded, got other pixels"):
        run_dir.record_split(run, split, prepared.load(out))


def change_index(out, column, value, row=2):
    with (out / reader.INDEX).open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[row][column] = value
    with (out / reader.INDEX).open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


@pytest.mark.parametrize(
    ("column", "value"), [("dx", "nv"), ("lesion_id", "HAM_9"), ("pixel_hash", "0" * 64)]
)
def test_a_changed_index_is_refused(out, column, value):
    change_index(out, column, value)
    with pytest.raises(InputError, match=r"fingerprint\.json: expected the .* that it recorded"):
        prepared.load(out)


@pytest.mark.parametrize(("column", "value"), [("dx", "nv"), ("lesion_id", "HAM_9")])
def test_a_changed_index_of_an_older_version_is_found_with_its_record(out, column, value):
    (out / fingerprint.FILE).unlink()
    change_index(out, column, value)
    records = prepared.load(out).records
    assert records[1]["image"].any()
    with pytest.raises(InputError, match="image ISIC_0000004: .* not the index.csv's"):
        records[2]


def test_verify_rechecks_every_record(out, command, monkeypatch):
    status, said, _ = command(prepare, f"--out={out}", "--verify")
    assert (status, said) == (0, f"{out}: every record is as it was prepared\n")
    (out / fingerprint.FILE).unlink()
    change_index(out, "pixel_hash", "0" * 64, row=7)
    status, _, err = command(prepare, f"--out={out}", "--verify")
    assert status == 2
    assert err.splitlines()[-1].endswith(
        "record 7, image ISIC_0000009: expected the pixels that were prepared, got others"
    )


def test_verify_adds_the_hashes_to_data_of_an_older_version(out):
    whole, recorded = (out / reader.INDEX).read_text(), (out / fingerprint.FILE).read_text()
    bare = [line.rsplit(",", 2)[0] for line in whole.splitlines()]
    (out / reader.INDEX).write_text("\n".join(bare) + "\n")
    (out / fingerprint.FILE).unlink()
    assert "pixels" not in prepared.load(out).fingerprint
    assert verify.verify(out)
    assert (out / reader.INDEX).read_text() == whole
    assert (out / fingerprint.FILE).read_text() == recorded
    assert not verify.verify(out)
