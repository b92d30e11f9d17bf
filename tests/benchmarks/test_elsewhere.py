import sys
from pathlib import Path

import pytest

from benchmarks.peers.elsewhere import Process, Unavailable

PEER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from benchmarks.peers.elsewhere import serve

def answers(question):
    print("what libraries print is no answer")
    if question["what"] == "end":
        sys.exit("out of ideas")
    return {"root": question["of"] ** 0.5, "env": os.environ["WHO"]}

serve("ready", answers)
"""


def start(script, env=None):
    return Process([sys.executable, "-c", script, str(Path(__file__).parents[2])], env)


def test_a_peer_answers_until_it_is_closed():
    with start(PEER, {"WHO": "peer"}) as peer:
        assert peer.about == "ready"
        assert peer.ask(what="root", of=16) == {"root": 4.0, "env": "peer"}
        with pytest.raises(Unavailable, match="TypeError: unsupported operand"):
            peer.ask(what="root", of="nothing")
        assert peer.ask(what="root", of=9)["root"] == 3.0


def test_a_peer_that_ends_says_why():
    with start(PEER, {"WHO": "peer"}) as peer:
        with pytest.raises(Unavailable, match="out of ideas"):
            peer.ask(what="end")
        with pytest.raises(Unavailable, match="out of ideas"):
            peer.ask(what="root", of=4)


def test_a_peer_that_does_not_start_says_why():
    with pytest.raises(Unavailable, match="No module named 'nonsense'"):
        start("import nonsense")
    with pytest.raises(Unavailable, match="no_such_python: No such file"):
        Process(["no_such_python"])
