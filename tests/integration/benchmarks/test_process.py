import sys

import pytest

from benchmarks.process import Process, Unavailable

PEER = """
import os, sys

def about():
    return "ready"

def root(of):
    print("libraries may print")
    return {"root": of**0.5, "env": os.environ["WHO"]}

FUNCTIONS = {"root": root, "end": lambda: sys.exit("out of ideas")}
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a peer with the given code."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start(code):
        (tmp_path / "a_peer.py").write_text(code)
        return Process(sys.executable, "a_peer", WHO="peer")

    return start


def test_a_peer_answers_until_it_ends_and_says_why(start):
    with start(PEER) as peer:
        assert peer.about == "ready"
        assert peer.ask("root", of=16) == {"root": 4.0, "env": "peer"}
        with pytest.raises(Unavailable, match="TypeError: unsupported operand"):
            peer.ask("root", of="nothing")
        assert peer.ask("root", of=9)["root"] == 3.0
        with pytest.raises(Unavailable, match="out of ideas"):
            peer.ask("end")
        with pytest.raises(Unavailable, match="out of ideas"):
            peer.ask("root", of=4)


def test_a_peer_that_does_not_start_says_why(start):
    with pytest.raises(Unavailable, match="No module named 'nonsense'"):
        start("import nonsense")
    with pytest.raises(Unavailable, match="no_such_python: No such file"):
        Process("no_such_python", "a_peer")
