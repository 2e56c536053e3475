"""The monitor's web server: routes, the Host header, what the page may do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from metad.monitor import server


def ask(path: str = "/", method: str = "GET", host: str = "localhost:9125", *, unix: bool = False):
    routes: dict[str, server.Route] = {
        "/": server.page,
        "/healthz": lambda: server.as_health(False, "refusing"),
        "/status.json": lambda: server.as_json({"a": 1}),
    }
    app = server.application(routes, any_host=unix)
    seen: list[Any] = []
    environ: Any = {"REQUEST_METHOD": method, "PATH_INFO": path, "HTTP_HOST": host}
    body = b"".join(app(environ, lambda status, headers: seen.append((status, dict(headers)))))  # type: ignore[arg-type,misc,return-value]
    return seen[0][0], seen[0][1], body


@pytest.mark.parametrize("host", ["localhost", "localhost:9125", "127.0.0.1:1", "[::1]:9125"])
def test_a_host_header_of_this_machine_is_answered(host):
    assert ask(host=host)[0] == "200 OK"


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "127.0.0.1:x"]
)
def test_another_host_is_refused_for_dns_rebinding_but_not_on_a_unix_socket(host):
    status, _, body = ask(host=host)
    assert status.startswith("403")
    assert b"<" not in body
    assert ask(host=host, unix=True)[0] == "200 OK"


def test_only_get_and_head_and_only_what_is_there():
    assert ask(method="POST")[0].startswith("405")
    assert ask("/etc/passwd")[0].startswith("404")
    status, headers, body = ask(method="HEAD")
    assert (status, body) == ("200 OK", b"")
    assert int(headers["Content-Length"]) > 1000


def test_bad_health_is_503():
    assert ask("/healthz")[0] == "503 Service Unavailable"


def test_the_page_loads_nothing_from_elsewhere():
    _, headers, body = ask()
    assert re.findall(rb"(?:src|href)=", body) == []
    assert re.findall(rb"https?://(?!www\.w3\.org/2000/svg)", body) == []
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert b" style=" not in body  # the policy would block it
