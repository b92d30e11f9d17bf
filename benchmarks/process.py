"""Peers in processes of their own, as Keras needs one for each backend.

A peer is a module with ``about()``, which returns the versions of its libraries, and ``FUNCTIONS``,
which can be called by name; it may have a ``setup()`` to be called first.
"""

import contextlib
import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple


class Unavailable(Exception):  # noqa: N818 a result, not an error
    """A peer does not run here; says why."""


class Process:
    """A running peer; a context that ends it."""

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
                    [python, "-m", "benchmarks.process", module, str(other.fileno())],
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
            self.about = self._answer()
        except Unavailable:
            self.close()
            raise

    def ask(self, function: str, **arguments: Any) -> Any:
        """Calls a function of the peer and returns its result.

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

    def close(self) -> None:
        """Ends the peer."""
        self._connection.close()
        self._process.wait()
        self._errors.close()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Timed(NamedTuple):
    """The function ``time`` of a peer, as `measure.seconds` expects it.

    Attributes:
        process: The peer.
        arguments: Arguments besides ``calls``.
    """

    process: Process
    arguments: Mapping[str, Any] = {}

    def time(self, calls: int) -> float:
        """Mean seconds per call."""
        return self.process.ask("time", calls=calls, **self.arguments)


def main(module: str, descriptor: str) -> None:
    """The peer's side: answers until the connection ends."""
    peer: Any = importlib.import_module(module)
    if hasattr(peer, "setup"):
        peer.setup()
    connection = Connection(int(descriptor))
    connection.send(("", peer.about()))
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = "", peer.FUNCTIONS[function](**arguments)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            answer = f"{type(error).__name__}: {first}", None
        connection.send(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
