"""The cost of a link: one COPY of 5 KB and its answer, on each side, without sockets and TLS.

    python -m perf.links [--seconds S] [--octets N]

Two links, joined in this process; the write of one side is collected and fed to the other, as the
transport does with what it reads.  Printed are microseconds of CPU for each message: of the asker
(request, answer) and of the taker (request, handler without work, answer).
"""

from __future__ import annotations

import argparse
import json
import time

from metad.cluster.answers import Answer, Answered
from metad.cluster.frames import Kind
from metad.cluster.link import Link
from metad.cluster.node import Node
from metad.cluster.serving import Reply
from metad.cluster.view import Member, Membership, View

BATCH = 50  # messages on their way at once
HEAD = b"h" * 200  # envelope and ids
CLUSTER = "c0ffee00" * 4


class Wire:
    """Keeps what a link writes until it is handed over."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def take(self) -> bytes:
        data = b"".join(self.sent)
        self.sent.clear()
        return data


def make_node(number: int, view: View) -> Node:
    def handle(kind: int, body: bytes, reply: Reply) -> None:
        reply(())

    return Node(
        number=number,
        start=bytes([number] * 8),
        release="perf",
        current_view=lambda: view,
        adopt=lambda new: None,
        handler=handle,
        report=lambda line: None,
        clock=lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        hub_time_us=lambda: 0,
    )


def joined(view: View) -> tuple[Link, Wire, Link, Wire]:
    """Two links that are ready."""
    near, far = Wire(), Wire()
    asker = Link(make_node(1, view), lambda link: None, 2)
    taker = Link(make_node(2, view), lambda link: None)
    asker.connected(near, view.members[1].fingerprint)
    taker.connected(far, view.members[0].fingerprint)
    while near.sent or far.sent:
        taker.feed(near.take())
        asker.feed(far.take())
    if not (asker.is_ready and taker.is_ready):
        raise RuntimeError(asker.reason or taker.reason)
    return asker, near, taker, far


def measure(seconds: float, octets: int) -> dict[str, float]:
    members = tuple(
        Member(number, f"127.0.0.{number}:7525", f"{number:064x}", Membership.ACTIVE, healed=False)
        for number in (1, 2)
    )
    asker, near, taker, far = joined(View(CLUSTER, 1, members, 2, 2, "refuse"))
    parts = (HEAD, b"x" * octets)
    answered = 0

    def done(answer: Answer) -> None:
        nonlocal answered
        answered += isinstance(answer, Answered)

    clock = time.thread_time
    of_asker = of_taker = 0.0
    asked = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        begin = clock()
        for _ in range(BATCH):
            asker.request(Kind.COPY, parts, done, 5.0)
        asked += BATCH
        middle = clock()
        of_asker += middle - begin
        requests = near.take()
        middle = clock()
        taker.feed(requests)
        end = clock()
        of_taker += end - middle
        answers = far.take()
        begin = clock()
        asker.feed(answers)
        of_asker += clock() - begin
        asker.tick()
        taker.tick()
    if answered != asked:
        raise RuntimeError(f"{answered} of {asked} requests were answered")
    return {
        "messages": asked,
        "asker_us": round(of_asker / asked * 1e6, 2),
        "taker_us": round(of_taker / asked * 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--octets", type=int, default=5_000)
    options = parser.parse_args()
    print(json.dumps(measure(options.seconds, options.octets)))


if __name__ == "__main__":
    main()
