"""A peer in a process of its own, as Keras needs one for each of its backends.

The peer's script calls `serve` with what answers; `Process` starts it and asks. Questions and
answers are objects of JSON, one a line; arrays go through files.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Unavailable(Exception):  # noqa: N818 it is no error, but a result
    """The peer does not run here, and why."""


class Process:
    """A running peer; a context that ends it."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None):
        """Starts the peer and waits until it is ready.

        Args:
            command: The interpreter, the script and its arguments.
            env: What to change in the environment.

        Raises:
            Unavailable: It ended instead, or the interpreter does not exist.
        """
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 for as long as the process
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env={**os.environ, **(env or {})},
            )
        except OSError as error:
            self._errors.close()
            raise Unavailable(f"{command[0]}: {error.strerror}") from error
        try:
            self.about = self._answer()
        except Unavailable:
            self.close()
            raise

    def ask(self, **question: Any) -> Any:
        """Asks and waits for the answer.

        Raises:
            Unavailable: The peer has ended, or the question was an error for it.
        """
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # It has ended, and its last words say why.
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines()
            raise Unavailable(lines[-1] if lines else f"exit status {self._process.returncode}")
        answer = json.loads(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer["answer"]

    def close(self) -> None:
        """Ends the peer, which stops when its input does."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # a question that it did not live to read
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(about: Any, answers: Callable[[dict[str, Any]], Any]) -> None:
    """The peer's side: answers until its input ends.

    Args:
        about: What the peer has to say of itself.
        answers: What a question is answered by; an exception is an answer too.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print does not come between.

    def write(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    write({"answer": about})
    for line in sys.stdin:
        try:
            write({"answer": answers(json.loads(line))})
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            write({"error": f"{type(error).__name__}: {first}"})
