"""Peers in this process, so that a test does not start Python again."""

import importlib.util
import sys

import pytest

from benchmarks import answer, process

Process = process.Process


class Local(answer.Peer):
    """A peer in this process; TensorFlow's stays in its own, as Keras has one backend here."""

    def __new__(cls, python, module, **env):
        if env.get("KERAS_BACKEND") == "tensorflow":
            if not importlib.util.find_spec("tensorflow"):
                raise process.Unavailable("no TensorFlow")
            return Process(sys.executable, module, **env)
        return super().__new__(cls)

    def __init__(self, python, module, **env):
        super().__init__(module)

    def time(self, calls, **arguments):
        return self.ask("time", calls=calls, **arguments)

    def close(self):
        pass


@pytest.fixture
def local(monkeypatch):
    """Makes all peers run in this process."""
    monkeypatch.setattr(process, "Process", Local)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The folder that results are written to."""
    monkeypatch.setenv("JAXATTN_RESULTS", str(tmp_path))
    return tmp_path
