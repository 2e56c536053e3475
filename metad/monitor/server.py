"""The monitor's web server: metrics, health and the status page, read-only.

    GET /metrics   Prometheus        GET /healthz   200 while the hub serves, else 503
    GET /          status page       GET /readyz    200 while new mail is taken, else 503
    GET /status.json

Rules of this file:

* It serves only this machine: loopback or a Unix socket, and the Host header must name it, so that
  no foreign web page can read it through a browser (DNS rebinding).
* It shows counts and logs, no addresses and no users.
* Requests are answered one at a time, each once it is complete (visitors.py).
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
from base64 import b64encode
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

TIMEOUT_SECONDS = 10.0
_LOCAL = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]{1,5})?", re.ASCII)
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_STYLE = re.compile(rb"<style>(.*?)</style>", re.DOTALL)

# Path -> (HTTP status, content type, body).
Answer = tuple[str, str, bytes]
Route = Callable[[], Answer]


def page() -> Answer:
    """The status page."""
    return "200 OK", "text/html; charset=utf-8", _PAGE


def as_json(facts: dict[str, Any]) -> Answer:
    return "200 OK", "application/json", json.dumps(facts).encode()


def as_health(good: bool, text: str) -> Answer:
    """The answer for a load balancer or a container runtime."""
    return "200 OK" if good else "503 Service Unavailable", "text/plain", f"{text}\n".encode()


def application(
    routes: dict[str, Route], *, any_host: bool
) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    """`any_host`: on a Unix socket the Host header means nothing."""

    def answer(environ: WSGIEnvironment) -> Answer:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return "405 Method Not Allowed", "text/plain", b"GET only\n"
        if not any_host and not _LOCAL.fullmatch(environ.get("HTTP_HOST", "")):
            return "403 Forbidden", "text/plain", b"the Host header must name this machine\n"
        route = routes.get(environ["PATH_INFO"])
        if route is None:
            return "404 Not Found", "text/plain", b"/metrics, /healthz, /readyz, /\n"
        return route()

    def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        status, kind, body = answer(environ)
        start(status, [
            ("Content-Type", kind), ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"),
            ("Content-Security-Policy", _POLICY),
        ])  # fmt: skip
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    return app


class MonitorServer(WSGIServer):
    """Serves on a listening socket."""

    def __init__(self, sock: socket.socket, app: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.server_name, self.server_port = "metad", 0
        self.setup_environ()
        self.set_app(app)

    def answer(self, client: socket.socket, peer: Any) -> None:
        """Answer the request that has arrived on a connection, and close it."""
        try:
            self.process_request(client, peer)
        except Exception:
            self.handle_error(client, peer)
            self.shutdown_request(client)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up or sends nothing causes no error."""


class _Handler(WSGIRequestHandler):
    timeout = TIMEOUT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Scrapes every few seconds are not logged."""

    def address_string(self) -> str:
        return str(self.client_address[0])


ServerHandler.server_software = "metad"


def _policy(page: bytes) -> str:
    """Only the page's own script and style run; nothing comes from elsewhere."""

    def digests(pattern: re.Pattern[bytes]) -> str:
        found = (hashlib.sha256(one).digest() for one in pattern.findall(page))
        return " ".join(f"'sha256-{b64encode(one).decode()}'" for one in found)

    return (
        f"default-src 'none'; script-src {digests(_SCRIPT)}; "
        f"style-src {digests(_STYLE)}; connect-src 'self'"
    )


_PAGE = resources.files("metad.monitor").joinpath("page.html").read_bytes()
_POLICY = _policy(_PAGE)
