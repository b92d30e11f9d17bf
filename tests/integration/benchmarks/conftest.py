"""Peers in this process, so that a test does not start Python again."""

import importlib
import importlib.util
import sys

import pytest

from benchmarks import process


class Local:
    """A peer in this process; TensorFlow's stays in its own, as Keras has one backend here."""

    def __new__(cls, python, module, **env):
        if env.get("KERAS_BACKEND") == "tensorflow":
            if not importlib.util.find_spec("tensorflow"):
                raise process.Unavailable("no TensorFlow")
            return process.Process(sys.executable, module, **env)
        return super().__new__(cls)

    def __init__(self, python, module, **env):
        self.peer = importlib.import_module(module)
        self.about = self.peer.about()

    def ask(self, function, **arguments):
        return self.peer.FUNCTIONS[function](**arguments)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def local(monkeypatch):
    """Makes a benchmark's module use peers in this process."""
    return lambda module: monkeypatch.setattr(module, "Process", Local)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The folder that results are written to."""
    monkeypatch.setenv("JAXATTN_RESULTS", str(tmp_path))
    return tmp_path
