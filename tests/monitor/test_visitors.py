"""Clients of the monitor that are silent, slow, or do not read: others are answered meanwhile."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from metad.monitor import server, visitors
from metad.monitor.visitors import HEAD, MOST, Visitors

REQUEST = b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n"


class Monitor:
    """A server on a free port whose turns a test takes."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        large = "text/plain", b"x" * 300_000
        routes: dict[str, server.Route] = {
            "/healthz": lambda: server.as_health(True, "serving"),
            "/large": lambda: ("200 OK", *large),
        }
        web = server.MonitorServer(self.listening, server.application(routes, any_host=False))
        self.visitors = Visitors(self.listening, web)
        self.clients: list[socket.socket] = []

    def connect(self, octets: bytes = b"") -> socket.socket:
        client = socket.create_connection(self.listening.getsockname(), 5)
        self.clients.append(client)
        if octets:
            client.sendall(octets)
        return client

    def turn(self) -> None:
        self.visitors.accept()
        self.visitors.serve()

    def ask(self, request: bytes = REQUEST) -> bytes:
        client = self.connect(request)
        self.turn()
        answer = b""
        while octets := client.recv(65_536):
            answer += octets
        return answer


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    made = Monitor()
    yield made
    made.visitors.close()
    for one in (made.listening, *made.clients):
        one.close()


@pytest.mark.slow
def test_a_request_is_answered_however_it_is_cut(monitor: Monitor) -> None:
    assert monitor.ask().endswith(b"serving\n")
    client = monitor.connect()
    for at in range(len(REQUEST)):
        monitor.turn()
        client.sendall(REQUEST[at : at + 1])
    deadline = time.monotonic() + 5
    while len(monitor.visitors):
        monitor.turn()
        assert time.monotonic() < deadline
    assert client.recv(1000).startswith(b"HTTP/1.0 200 OK")


def test_silent_and_dripping_clients_hold_nothing_up(monitor: Monitor) -> None:
    """Regression: the server waited for each, ten seconds per byte, without any scrape or heartbeat
    meanwhile."""
    for number in range(MOST - 1):
        monitor.connect(b"" if number % 2 else b"GET /healthz HTTP/1.0\r\nX: ")
    began = time.monotonic()
    for _ in range(5):
        assert monitor.ask().endswith(b"serving\n")
        for client in monitor.clients[: MOST - 1]:
            client.sendall(b"x")
    assert time.monotonic() - began < server.TIMEOUT_SECONDS / 2


def test_of_too_many_the_oldest_goes(monitor: Monitor) -> None:
    clients = [monitor.connect() for _ in range(MOST)]
    monitor.turn()
    assert len(monitor.visitors) == MOST
    assert monitor.ask().endswith(b"serving\n")
    assert clients[0].recv(1) == b""
    assert len(monitor.visitors) == MOST - 1


def test_a_head_that_does_not_end_and_a_client_that_hangs_up_are_closed(monitor: Monitor) -> None:
    endless = monitor.connect(b"GET /" + b"a" * HEAD)
    gone = monitor.connect(b"GET")
    gone.shutdown(socket.SHUT_WR)
    monitor.turn()
    monitor.turn()
    with pytest.raises(ConnectionResetError):
        endless.recv(1)
    assert len(monitor.visitors) <= 1  # a half-closed connection is closed at its deadline


def test_time_runs_out(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visitors, "TIMEOUT_SECONDS", 0.0)
    client = monitor.connect()
    monitor.turn()
    monitor.turn()
    assert client.recv(1) == b""
    assert len(monitor.visitors) == 0


def test_a_client_that_does_not_read_is_not_waited_for(monitor: Monitor) -> None:
    began = time.monotonic()
    for _ in range(5):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(monitor.listening.getsockname())
        monitor.clients.append(client)
        client.sendall(REQUEST.replace(b"/healthz", b"/large"))
        monitor.turn()
    assert monitor.ask().endswith(b"serving\n")
    assert time.monotonic() - began < server.TIMEOUT_SECONDS / 2
