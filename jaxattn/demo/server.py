"""The server of the page: three files to get, one image to post, nothing kept."""

import ipaddress
import json
import sys
import threading
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

import jinja2
import numpy as np

from jaxattn.demo.answer import MAX_BYTES, answer
from jaxattn.errors import InputError, invalid
from jaxattn.export import card
from jaxattn.metrics import number
from jaxattn.run import Run

#: Of every response. The page loads nothing from elsewhere and runs no script but its own.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_HTML, _JSON = "text/html; charset=utf-8", "application/json"
_FILES = {"/demo.css": "text/css; charset=utf-8", "/demo.js": "text/javascript; charset=utf-8"}


class Server(ThreadingHTTPServer):
    """Serves one run; `serve_forever` answers until `shutdown`.

    Attributes:
        run: The run.
        host: The name or address it listens at.
        computing: Held while an image is classified: one at a time.
    """

    daemon_threads = True

    def __init__(self, run: Run, host: str = "127.0.0.1", port: int = 8000):
        """Listens at an address.

        Args:
            run: The run; see `run.load_run` for its maps.
            host: Where to listen; by default, this machine alone can ask.
            port: 0 for any free one.

        Raises:
            InputError: The address cannot be listened at.
        """
        self.run, self.host = run, host
        self.computing = threading.Lock()
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            given = f"{host}:{port} ({error.strerror or error})"
            raise invalid("--host, --port", "a free address of this machine", given) from error

    def server_bind(self) -> None:
        """Binds, without the base class's look-up of the machine's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints what went wrong, unless the browser went away."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{self.host}:{self.server_port}"

    @cached_property
    def page(self) -> bytes:
        """The page."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("jaxattn.demo", ""),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["number"] = number
        template = environment.get_template("page.html.j2")
        return template.render(card.card(self.run), max_bytes=MAX_BYTES).encode()

    def warm_up(self) -> None:
        """Compiles, so that the first image does not wait for it."""
        self.run.predict([np.zeros((*self.run.geometry[0], 3), np.uint8)])


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = 30  # seconds without a byte

    def do_GET(self) -> None:
        """Sends the page or one of its files."""
        if not self._is_for_us():
            return
        if self.path == "/":
            self._reply(200, _HTML, self.server.page)
        elif self.path in _FILES:
            content = resources.files("jaxattn.demo").joinpath(self.path[1:]).read_bytes()
            self._reply(200, _FILES[self.path], content)
        else:
            self.send_error(404, "There is no such page.")

    def do_POST(self) -> None:
        """Classifies the image that is the request's body."""
        given = self.headers.get("Content-Length", "")
        length = int(given) if given.isascii() and given.isdigit() and len(given) < 16 else -1
        # Read even if it is not wanted: browsers send before they listen.
        data = self._skip(length) if length > MAX_BYTES else self.rfile.read(max(length, 0))
        if not self._is_for_us():
            return
        if self.path != "/classify":
            self.send_error(404, "There is no such page.")
        elif length < 0:
            self.send_error(411, "The length of the file is missing.")
        elif length > MAX_BYTES:
            self.send_error(413, f"The file is too large: {MAX_BYTES >> 20} MB are allowed.")
        elif len(data) < length:
            self.send_error(400, "The file has not arrived completely.")
        else:
            self._classify(data)

    def _classify(self, data: bytes) -> None:
        try:
            with self.server.computing:
                found = answer(self.server.run, data)
        except InputError as error:
            self.send_error(415, _sentence(error))
        else:
            self._reply(200, _JSON, json.dumps(found).encode())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Replies with one sentence; the base class calls it too."""
        del explain
        self._reply(code, _JSON, json.dumps({"error": message or "Not understood."}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""

    def version_string(self) -> str:
        """The header ``Server``."""
        return "jaxattn"

    def _is_for_us(self) -> bool:
        """Whether our page, or its visitor, asks; otherwise replies.

        A page of another site may ask this server in its visitor's name. Its requests say where
        they come from; or, if that site's name was made to point here (DNS rebinding), they ask
        for that name.
        """
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin", f"http://{host}")
        site = self.headers.get("Sec-Fetch-Site", "none")
        if not self._is_our_name(host):
            self.send_error(421, "This server has another name.")
        elif origin != f"http://{host}" or site not in ("none", "same-origin"):
            self.send_error(403, "Other pages may not ask.")
        else:
            return True
        return False

    def _is_our_name(self, host: str) -> bool:
        """Whether a ``Host`` is the address that was connected to, or the server's own name.

        Its port may be another one, that of a tunnel.
        """
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        address = self.connection.getsockname()[0]
        names = {self.server.host, address}
        if ipaddress.ip_address(address).is_loopback:
            names.add("localhost")
        return name in names - {"", "0.0.0.0"}

    def _skip(self, length: int) -> bytes:
        """Reads a body that is too large, within bounds, and forgets it."""
        left = min(length, 8 * MAX_BYTES)
        while left and (part := self.rfile.read(min(left, 1 << 16))):
            left -= len(part)
        return b""

    def _reply(self, code: int, kind: str, content: bytes) -> None:
        self.send_response(code)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _sentence(error: InputError) -> str:
    """An error for a page, which has no fields to name."""
    text = str(error).partition(": ")[2] or str(error)
    return f"{text[:1].upper()}{text[1:]}."
