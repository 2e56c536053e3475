"""A retiring worker serves all clients that it has accepted, however recently.

Clients of a stopped worker connect meanwhile; when it continues, it learns about them and its
retirement at the same moment.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from metad.control_client import request
from tests.support.clients import fetch, in_time, message
from tests.support.live import strike
from tests.support.wide_hub import Pop3, Smtp, WideHub, connect

KINDS = ["smtp", "smtps", "proxied", "proxied-smtps", "pop3", "pop3s"]
ROUNDS = 3
PROXY_HEADER = b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 25\r\n"


def serving(hub: WideHub, retired: set[int]) -> int:
    """The pid of the worker, once there is one that serves and has not been told to retire."""
    found: list[int] = []

    def there() -> bool:
        workers = request(hub.data, "status")["workers"]
        pids = {one["pid"] for one in workers if one["state"] == "serving"}
        found[:] = pids - retired
        return bool(found)

    assert in_time(there)
    return found[0]


def session(hub: WideHub, kind: str, connection) -> None:
    """A client's whole session on an open connection."""
    line = (Pop3 if "pop3" in kind else Smtp)(connection)
    with line:
        if kind.startswith("proxied"):
            line.send(PROXY_HEADER)
        if kind.endswith("s"):
            line.secure(hub.trust)
        if isinstance(line, Pop3):
            assert line.line().startswith(b"+OK")
            line.listing("CAPA")
        else:
            line.reply(b"220")
            line.say("EHLO client.example.test")
            line.deliver(message(), "alice")
        line.say("QUIT")


@pytest.mark.long
def test_a_client_accepted_at_the_moment_of_retirement_is_served():
    with WideHub(KINDS, workers=1) as hub:
        retired: set[int] = set()
        for _ in range(ROUNDS):
            worker = serving(hub, retired)
            retired.add(worker)
            strike(worker, signal.SIGSTOP)
            with ExitStack() as waiting:
                clients = [
                    (kind, waiting.enter_context(connect(hub.places[kind]))) for kind in KINDS
                ]
                strike(worker, signal.SIGHUP)
                strike(worker, signal.SIGCONT)
                for kind, client in clients:
                    session(hub, kind, client)
        mail = [kind for kind in KINDS if "pop3" not in kind]
        assert len(fetch(hub, "alice")) == ROUNDS * len(mail)
