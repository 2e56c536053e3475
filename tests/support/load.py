"""Several senders and POP clients at work, and the oracle: nothing acknowledged is lost or
duplicated.

Rules of this file:

* Digests decide.  A deletion whose QUIT was not answered may have happened or not.
* A broken session is counted, and the client continues with another, until told to end.
"""

from __future__ import annotations

import random
import threading

from tests.support.clients import Pop3Line, SmtpLine, digest, message, random_body, without_trace
from tests.support.hub import DEADLINE, Hub
from tests.support.live import settled_fetch
from tests.support.sizes import noted

PER_SESSION = 5  # messages that a sender sends on one connection
KILLS = "row 3, kill -9 of a hub's processes under load: kills"
PAUSE = 0.02  # before a refused client tries again


class Load:
    """`senders` senders to all mailboxes; a reader for each of the first `readers` mailboxes."""

    def __init__(self, hub: Hub, names: list[str], senders: int = 3, readers: int = 2) -> None:
        self.hub, self.names = hub, names
        self.sent: set[str] = set()
        self.acknowledged: dict[str, tuple[str, ...]] = {}
        self.deleted: dict[str, set[str]] = {name: set() for name in names}
        self.doubtful: dict[str, set[str]] = {name: set() for name in names}
        self.failures: list[str] = []
        self.sessions = 0
        self.changed = threading.Condition()
        self.ended = threading.Event()
        dice = random.Random(1999)
        self.threads = [
            *(_Client(self, self._send, random.Random(dice.random())) for _ in range(senders)),
            *(_Client(self, self._read, names[number]) for number in range(readers)),
        ]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()

    def wait_for(self, more: int) -> None:
        """Until so many more messages are acknowledged."""
        with self.changed:
            goal = len(self.acknowledged) + more
            assert self.changed.wait_for(lambda: len(self.acknowledged) >= goal, DEADLINE)

    def check(self) -> None:
        """The oracle.  To be called when the load has ended."""
        for name in self.names:
            found = [digest(without_trace(one)) for one in settled_fetch(self.hub, name)]
            assert len(found) == len(set(found)), f"{name}: doubled"
            kept = {one for one, where in self.acknowledged.items() if name in where}
            missing = kept - self.deleted[name] - self.doubtful[name] - set(found)
            assert not missing, f"{name}: {len(missing)} lost"
            assert not set(found) & self.deleted[name], f"{name}: came back"
            assert set(found) <= self.sent, f"{name}: never sent"

    # -- the clients

    def _send(self, dice: random.Random) -> None:
        with SmtpLine(self.hub) as smtp:
            for _ in range(PER_SESSION):
                octets = message(random_body(dice, 5000))
                names = tuple(dice.sample(self.names, dice.randrange(1, len(self.names) + 1)))
                self.sent.add(digest(octets))
                smtp.deliver(octets, *names)
                with self.changed:
                    self.acknowledged[digest(octets)] = names
                    self.changed.notify_all()
            smtp.say("QUIT", b"221")

    def _read(self, name: str) -> None:
        with Pop3Line(self.hub) as pop:
            pop.log_in(name)
            marked = set()
            for number in range(1, min(pop.count(), 20) + 1, 2):
                marked.add(digest(without_trace(pop.retrieve(number))))
                pop.say(f"DELE {number}")
            self.doubtful[name] |= marked
            pop.say("QUIT")
            self.deleted[name] |= marked
            self.doubtful[name] -= marked


class _Client(threading.Thread):
    def __init__(self, load: Load, session, given) -> None:
        super().__init__()
        self.load, self.session, self.given = load, session, given

    def run(self) -> None:
        load = self.load
        while not load.ended.is_set():
            try:
                self.session(self.given)
                load.sessions += 1
            except (OSError, AssertionError) as error:
                load.failures.append(f"{type(error).__name__}: {error}")
                load.ended.wait(PAUSE)


def show(what: str, times: list[float]) -> None:
    """The median and the longest time until all was served again."""
    middle, most = sorted(times)[len(times) // 2], max(times)
    noted(f"back in service after kill -9 of {what}", f"{middle:.2f} s, at most {most:.2f} s")
