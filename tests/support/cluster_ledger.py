"""Clients of a cluster that is being hurt, and what they were told.

What was acknowledged must be listed, what was deleted with +OK must not, by every node.  A message
is known by the number in its subject.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from tests.support.clients import Pop3Line, SmtpLine, message, stuffed
from tests.support.hub import Hub, address

BOX = "ann"
Node = TypeVar("Node")
MOST = 150  # messages that wait to be read: every session reads them all


class Ledger:
    """What clients were told."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.number = 0
        self.acked: set[int] = set()
        self.refused: set[int] = set()
        self.attempted: set[int] = set()  # QUIT was sent
        self.deleted: set[int] = set()  # and answered by +OK
        self.wrong: list[str] = []
        self.listings = 0
        self.read_again = threading.Event()

    def next(self) -> int:
        with self.lock:
            self.number += 1
            return self.number

    def known(self) -> tuple[set[int], set[int]]:
        """What a session that begins now must show, and what it must not."""
        with self.lock:
            return self.acked - self.attempted, set(self.deleted)


def subject(number: int) -> bytes:
    return b"Subject: <%d>\r\n" % number


def number_of(text: bytes) -> int:
    return int(text.partition(b"Subject: <")[2].partition(b">")[0])


def send(node: Hub, ledger: Ledger) -> None:
    if len(ledger.known()[0]) > MOST:
        ledger.read_again.clear()
        ledger.read_again.wait(1.0)
        return
    number = ledger.next()
    with SmtpLine(node) as smtp:
        smtp.say("MAIL FROM:<sender@client.example.test>")
        smtp.say(f"RCPT TO:<{address(BOX)}>")
        smtp.say("DATA", b"354")
        smtp.send(stuffed(subject(number) + message(b"text\r\n")))
        reply = smtp.line()
    with ledger.lock:
        if reply.startswith(b"250"):
            ledger.acked.add(number)
        elif reply.startswith(b"4"):
            ledger.refused.add(number)


def read(node: Hub, name: str, ledger: Ledger, dice: random.Random) -> None:
    """A session that lists and fetches everything, and deletes some of it.  `name`: the node's."""
    must, must_not = ledger.known()
    with Pop3Line(node) as pop:
        pop.log_in(BOX)
        found = [number_of(pop.retrieve(one)) for one in range(1, pop.count() + 1)]
        ledger.listings += 1
        if missing := must - set(found):
            ledger.wrong.append(f"{name} does not list {sorted(missing)}")
        if back := must_not.intersection(found):
            ledger.wrong.append(f"{name} lists what was deleted: {sorted(back)}")
        if len(found) != len(set(found)):
            ledger.wrong.append(f"{name} lists a message twice")
        chosen = dice.sample(range(1, len(found) + 1), dice.choice((0, len(found) // 2)))
        for one in chosen:
            pop.say(f"DELE {one}")
        numbers = {found[one - 1] for one in chosen}
        with ledger.lock:
            ledger.attempted |= numbers
        pop.say("QUIT")
    with ledger.lock:
        ledger.deleted |= numbers
    ledger.read_again.set()


class Client(threading.Thread, Generic[Node]):
    """Does one thing at random nodes until it is told to stop.  What a hurt node does to it is no
    failure."""

    def __init__(self, act: Callable[[Node], None], nodes: Sequence[Node], seed: int) -> None:
        super().__init__()
        self._act = act
        self._nodes = nodes
        self.dice = random.Random(seed)
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            with suppress(OSError, AssertionError, ValueError):
                self._act(self.dice.choice(self._nodes))


def listed(node: Hub) -> list[int]:
    with Pop3Line(node) as pop:
        pop.log_in(BOX)
        found = [number_of(pop.retrieve(one)) for one in range(1, pop.count() + 1)]
        pop.say("QUIT")
        return found


def is_right(node: Hub, ledger: Ledger) -> bool:
    """In quiet: all that was acknowledged and not deleted, nothing refused, nothing deleted."""
    with suppress(OSError, AssertionError):
        found = set(listed(node))
        must, must_not = ledger.known()
        return must <= found and not found & (must_not | ledger.refused)
    return False
