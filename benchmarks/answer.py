"""The peer's side of `benchmarks.process`: answers until the connection ends."""

import importlib
import sys
from multiprocessing.connection import Connection
from typing import Any


class Peer:
    """A peer in this process.

    Attributes:
        module: Its module.
        ready: What it made ready last.
    """

    def __init__(self, module: str):
        """Imports the module."""
        self.module: Any = importlib.import_module(module)
        self.ready: Any = None

    def ask(self, function: str, **arguments: Any) -> Any:
        """Calls a function of the module, or of what its ``prepare`` made.

        Returns:
            Of ``prepare``, the facts.
        """
        if function == "prepare":
            self.ready = None  # its memory is free for the next
            self.ready = self.module.prepare(**arguments)
            return self.ready.facts
        return getattr(self.ready if hasattr(self.ready, function) else self.module, function)(
            **arguments
        )


def main(module: str, descriptor: str) -> None:
    """Answers on a connection."""
    peer = Peer(module)
    if hasattr(peer.module, "setup"):
        peer.module.setup()
    connection = Connection(int(descriptor))
    connection.send(("", None))
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = "", peer.ask(function, **arguments)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            answer = f"{type(error).__name__}: {first}", None
        connection.send(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
