"""Peers in processes of their own, as Keras needs one for each backend.

A peer is a module with a function ``prepare`` that makes a `steps.Ready`, and perhaps others to ask
for; it may have a ``setup()`` to be called first.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags

from jaxattn.errors import invalid

flags.DEFINE_string(
    *("tensorflow_python", sys.executable),
    "An interpreter with TensorFlow and Keras; empty for none.",
)


class Unavailable(Exception):  # noqa: N818 a result, not an error
    """A peer does not run here; says why."""


class Process:
    """A running peer."""

    def __init__(self, python: str, module: str, **env: str):
        """Starts a peer and waits until it is ready.

        Args:
            python: The interpreter.
            module: Name of the peer's module.
            **env: Environment variables to set.

        Raises:
            Unavailable: The interpreter does not exist, or the peer ended at once.
        """
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed with the process
        self._connection, other = multiprocessing.Pipe()
        try:
            with other:
                self._process = subprocess.Popen(
                    [python, "-m", "benchmarks.answer", module, str(other.fileno())],
                    pass_fds=[other.fileno()],
                    stdout=self._errors,
                    stderr=self._errors,
                    env={**os.environ, "PYTHONPATH": path, **env},
                )
        except OSError as error:
            self._errors.close()
            self._connection.close()
            raise Unavailable(f"{python or 'no interpreter'}: {error.strerror}") from error
        try:
            self._answer()
        except Unavailable:
            self.close()
            raise

    def ask(self, function: str, **arguments: Any) -> Any:
        """Calls a function of the peer, see `answer`, and returns its result.

        Raises:
            Unavailable: The function raised an error, or the peer has ended.
        """
        with contextlib.suppress(BrokenPipeError):  # the peer has ended; `_answer` says why
            self._connection.send((function, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            error, answer = self._connection.recv()
        except (EOFError, ConnectionResetError) as ended:
            self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines()
            text = lines[-1] if lines else f"exit status {self._process.returncode}"
            raise Unavailable(text) from ended
        if error:
            raise Unavailable(error)
        return answer

    def time(self, calls: int, **arguments: Any) -> float:
        """Mean seconds of what was prepared."""
        return self.ask("time", calls=calls, **arguments)

    def close(self) -> None:
        """Ends the peer."""
        self._connection.close()
        self._process.wait()
        self._errors.close()


class Peers(contextlib.ExitStack):
    """Peers, each in a process; a context that ends them.

    Attributes:
        ready: Those that made the last question ready, by name.
        skipped: Why the others did not.
    """

    def __init__(self, names: Iterable[str], module: str, **env: str):
        """Starts them.

        Args:
            names: ``keras_tensorflow`` and ``keras_jax`` are Keras on these backends.
            module: In ``benchmarks.peers``; ``{}`` in it becomes the first part of a name.
            **env: Environment variables to set.
        """
        super().__init__()
        self._running: dict[str, Process] = {}
        self._missing: dict[str, str] = {}
        self.ready: dict[str, Process] = {}
        self.skipped: dict[str, str] = {}
        for name in names:
            library, _, backend = name.partition("_")
            python = sys.executable
            if name.startswith(("keras_tensorflow", "tf.data")):
                python = flags.FLAGS["tensorflow_python"].value or ""
            keras = {"KERAS_BACKEND": backend} if backend else {}
            path = f"benchmarks.peers.{module.format(library)}"
            try:
                process = self._running[name] = Process(python, path, **keras, **env)
                self.callback(process.close)
            except Unavailable as reason:
                self._missing[name] = str(reason)

    def prepare(self, **question: Any) -> dict[str, dict[str, Any]]:
        """Makes them ready for a question and returns the facts that each tells.

        Raises:
            InputError: ``ours`` did not get ready.
        """
        facts = {}
        self.ready, self.skipped = {}, dict(self._missing)
        for name, process in self._running.items():
            try:
                facts[name] = dict(process.ask("prepare", peer=name, **question))
                self.ready[name] = process
            except Unavailable as reason:  # it may also need too much memory
                self.skipped[name] = str(reason)
        if "ours" in self.skipped:
            raise invalid("ours", "a program that runs", self.skipped["ours"])
        return facts
