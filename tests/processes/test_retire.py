"""A worker that retires serves whom it has accepted, however short a while ago.

A stopped worker's clients connect meanwhile; when it goes on, it hears of them and of its
retirement in the same moment.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack

from metad.control import request
from tests.support.clients import fetch, in_time, message
from tests.support.live import strike
from tests.support.wide_hub import Pop3, Smtp, WideHub, connect

KINDS = ["smtp", "smtps", "proxied", "proxied-smtps", "pop3", "pop3s"]
ROUNDS = 3
PROXY_HEADER = b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 25\r\n"


def serving(hub: WideHub) -> int:
    """The pid of the worker, once there is one that serves."""
    found: list[int] = []

    def there() -> bool:
        workers = request(hub.data, "status")["workers"]
        found[:] = [one["pid"] for one in workers if one["state"] == "serving"]
        return bool(found)

    assert in_time(there)
    return found[0]


def session(hub: WideHub, kind: str, connection) -> None:
    """All of a client's session, on a connection that is there."""
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


def test_who_was_accepted_in_the_moment_of_retirement_is_served():
    with WideHub(KINDS, workers=1) as hub:
        for _ in range(ROUNDS):
            worker = serving(hub)
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
