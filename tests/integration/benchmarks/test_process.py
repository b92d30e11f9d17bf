import sys

import pytest
from absl import flags

from benchmarks.process import Peers, Process, Unavailable
from jaxattn.errors import InputError

PEER = """
import os, sys
from benchmarks.peers.steps import Ready

def prepare(peer, of):
    print("libraries may print")
    return Ready(lambda: of**0.5, facts={"root": of**0.5, "peer": peer, "env": os.environ["WHO"]})

def add(a, b):
    return a + b

def end():
    sys.exit("out of ideas")
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
    peer = start(PEER)
    assert peer.ask("prepare", peer="a", of=16) == {"root": 4.0, "peer": "a", "env": "peer"}
    with pytest.raises(Unavailable, match="TypeError: unsupported operand"):
        peer.ask("prepare", peer="a", of="nothing")
    assert peer.ask("prepare", peer="a", of=9)["root"] == 3.0
    assert peer.time(2) < 1
    assert peer.ask("add", a=1, b=2) == 3
    with pytest.raises(Unavailable, match="out of ideas"):
        peer.ask("end")
    with pytest.raises(Unavailable, match="out of ideas"):
        peer.ask("add", a=1, b=2)
    peer.close()


def test_a_peer_that_does_not_start_says_why(start):
    with pytest.raises(Unavailable, match="No module named 'nonsense'"):
        start("import nonsense")
    with pytest.raises(Unavailable, match="no_such_python: No such file"):
        Process("no_such_python", "a_peer")


def test_peers_that_do_not_run_are_skipped_but_for_ours(monkeypatch):
    monkeypatch.setattr(flags.FLAGS["tensorflow_python"], "value", "no_such_python")
    with Peers(["keras_tensorflow"], "{}_step") as peers:
        assert peers.prepare() == {}
        assert list(peers.skipped) == ["keras_tensorflow"]
        assert "no_such_python: No such file" in peers.skipped["keras_tensorflow"]
    with Peers(["ours"], "no_such_{}") as peers, pytest.raises(InputError, match="no_such_ours"):
        peers.prepare()
