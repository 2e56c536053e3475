"""The loads of the comparison, and one measurement of one server under one of them.

Rules of this file:

* A rate of acceptance ends with the last 250; a rate of delivery when the queue is empty.  Then as
  many messages must be in the mailboxes as were sent: otherwise there is no figure.
* CPU is counted until the queue is empty, for all the server's processes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from perf.generator import GeneratorError, Pop3, Report, Smtp
from perf.peers.catalog import EMPTY, LARGE, LEFT, SMALL, USERS
from perf.peers.peer import PASSWORD, Peer

DELIVERS_WITHIN = 30.0


@dataclass(frozen=True, slots=True)
class SmtpLoad:
    name: str
    title: str
    connections: int
    size: int = 500
    pipeline: bool = False
    per_connection: int = 0


SMTP_LOADS = (
    SmtpLoad("1", "1 connection", 1),
    SmtpLoad("20", "20 connections", 20),
    SmtpLoad("100", "100 connections", 100),
    SmtpLoad("50 KB", "20 connections, 50 KB", 20, 50_000),
    SmtpLoad("per mail", "20, a connection per mail", 20, per_connection=1),
    SmtpLoad("pipelined 1", "pipelined, 1", 1, pipeline=True),
    SmtpLoad("pipelined 20", "pipelined, 20", 20, pipeline=True),
)


@dataclass(frozen=True, slots=True)
class Pop3Load:
    name: str
    title: str
    connections: int
    users: tuple[str, ...]
    action: str = "keep"
    retrieve: int = 1


POP3_LOADS = (
    Pop3Load("1 x 500 B", "1 connection, 500 B", 1, SMALL),
    Pop3Load("20 x 500 B", "20 connections, 500 B", 20, SMALL),
    Pop3Load("1 x 5 KB", "1 connection, 5 KB", 1, LARGE),
    Pop3Load("20 x 5 KB", "20 connections, 5 KB", 20, LARGE),
    Pop3Load("pipelined", "20, 500 B, pipelined by 32", 20, SMALL, retrieve=32),
    Pop3Load("polls 1", "polls, 1 connection", 1, EMPTY, "poll"),
    Pop3Load("polls 20", "polls, 20 connections", 20, EMPTY, "poll"),
    Pop3Load("polls full", "polls of full maildrops, 20", 20, SMALL, "poll"),
)
# One maildrop takes one session at a time.
LEFT_LOAD = Pop3Load(
    "polls left", "polls, 1 maildrop of a client that leaves its mail", 1, LEFT, "poll"
)

# One measurement: figures by name.
Figure = dict[str, Any]


def _figure(report: Report, cpu: float, seconds: float) -> Figure:
    return {
        "count": report.count,
        "rate": report.count / report.seconds,
        "delivered": report.count / seconds,
        "cpu_us": cpu / report.count * 1e6,
        "latency_ms": report.latency_ms,
        "load_cpu_us": report.cpu_us,
        "load_busy": report.busy,
    }


def send(peer: Peer, load: SmtpLoad, messages: int, lmtp: bool) -> Report:
    connections = min(load.connections, messages)
    smtp = Smtp(connections, messages, load.size, load.pipeline, load.per_connection, lmtp)
    return smtp.run(peer.lmtp if lmtp else peer.smtp, USERS)


def await_delivery(peer: Peer) -> None:
    deadline = time.monotonic() + DELIVERS_WITHIN
    while left := peer.undelivered():
        if time.monotonic() > deadline:
            raise GeneratorError(f"{left} files are in the queue after {DELIVERS_WITHIN:.0f} s")
        time.sleep(0.01)


def measure_smtp(peer: Peer, load: SmtpLoad, messages: int, lmtp: bool) -> Figure:
    await_delivery(peer)
    before = peer.delivered() if peer.delivered else 0
    cpu, began = peer.account.cpu(), time.perf_counter()
    report = send(peer, load, messages, lmtp)
    await_delivery(peer)
    seconds = max(time.perf_counter() - began, report.seconds)
    figure = _figure(report, peer.account.cpu() - cpu, seconds)
    if peer.undelivered.__name__ == "_none":  # accepted is delivered
        figure["delivered"] = figure["rate"]
    if peer.delivered and (arrived := peer.delivered() - before) != messages:
        raise GeneratorError(f"{messages} messages were accepted and {arrived} arrived")
    return figure


def measure_pop3(peer: Peer, load: Pop3Load, sessions: int) -> Figure:
    pop3 = Pop3(min(load.connections, sessions), sessions, load.action, load.retrieve)
    cpu = peer.account.cpu()
    report = pop3.run(peer.pop3, load.users, PASSWORD)
    return _figure(report, peer.account.cpu() - cpu, report.seconds)


def fill(peer: Peer, lmtp: bool, each: int, left: int = 0) -> None:
    """As many messages in each of the maildrops that are downloaded; `left` in another one."""
    port = peer.lmtp if lmtp else peer.smtp
    for users, size in ((SMALL, 500), (LARGE, 5000)):
        Smtp(20, each * len(users), size, lmtp=lmtp).run(port, users)
    if left:
        Smtp(20, left, 500, lmtp=lmtp).run(port, LEFT)
    await_delivery(peer)
