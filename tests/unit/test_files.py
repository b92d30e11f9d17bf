"""Files are whole or not there; a folder has one holder."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxattn import files
from jaxattn.errors import InputError
from jaxattn.runtime import lock


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "folder" / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError), files.replacing(path) as part:
        part.write_text(part.write_text("half"))
    assert json.loads(path.read_text()) == {"a": 1}
    assert [each.name for each in path.parent.iterdir()] == ["x.json"]


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    """The limit on the size of a file stands for a full disk: the write fails half way."""
    path = tmp_path / "x.txt"
    files.write_text(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(InputError, match="x.txt: expected a place that can be written, got "):
            files.write_text(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["x.txt"]


def test_an_interrupted_deletion_is_completed(tmp_path, monkeypatch):
    (tmp_path / "7" / "state").mkdir(parents=True)
    (tmp_path / "7" / "state" / "a").write_text("a")
    (tmp_path / "8.part").mkdir()
    (tmp_path / "config.json.12.part").write_text("{")
    (tmp_path / "kept").write_text("kept")

    def fails(path):
        raise OSError(errno.EIO, "no more")

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", fails)
        with pytest.raises(OSError, match="no more"):
            files.delete(tmp_path / "7")
    assert not (tmp_path / "7").exists()
    files.clean(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]


def test_checksums_find_every_flipped_bit(tmp_path):
    """Against hashlib on the whole file; then each single bit of a file."""
    content = bytes(range(32))
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / "x"
    path.write_bytes(content)
    sums = files.checksums(tmp_path)
    assert sums == {"d/x": hashlib.sha256(content).hexdigest()}
    assert files.damage(tmp_path, sums) == ""
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert files.damage(tmp_path, sums) == "d/x has changed"
    path.unlink()
    assert files.damage(tmp_path, sums) == "d/x: No such file or directory"


@pytest.mark.parametrize("name", ["exp [1]", "a*b", "what?", "back\\slash"])
def test_a_plain_path_leads_to_the_same_folder(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    with files.plain(folder) as path:
        (path / "x").write_text("x")
        assert not set("[]*?\\") & set(str(path))
    assert (folder / "x").read_text() == "x"
    assert not path.exists()
    with files.plain(tmp_path) as path:
        assert path == tmp_path


HOLD = """
import pathlib, sys
from jaxattn.runtime import lock
with lock.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_process_is_told_who_holds_the_folder_until_it_is_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        named = f"got process {holder.pid} on {os.uname().nodename} since 20"
        with pytest.raises(InputError, match=named), lock.hold(tmp_path):
            pass
        holder.kill()
    with lock.hold(tmp_path):  # what it left behind holds nothing
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
