"""A session that begins after a 250 lists that mail, in whatever workers the two are.

The acknowledgement precedes the entry in the index: while a test holds the index's lock, mail is
acknowledged but not entered.
"""

from __future__ import annotations

import json
import select
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from metad.cli.mail.mailstore import wait_for_recovery
from tests.support.clients import Pop3Line, SmtpLine, deliver, message, together
from tests.support.hub import DEADLINE, METAD, PASSWORD, address
from tests.support.live import NAMES, LiveHub, index_locked, recovery, strike
from tests.support.sizes import reached, sized

MANY = 8  # connections: all of them in one worker would be a rare chance


@pytest.fixture
def live():
    with LiveHub() as hub:
        yield hub


def taken(live: LiveHub) -> dict[int, int]:
    """Messages by worker."""
    return {one["pid"]: one["messages"] for one in live.facts()["workers"]}


def acknowledge(smtp: SmtpLine, name: str) -> bytes:
    """One message; its unique id, from the answer."""
    return smtp.deliver(message(), name).rsplit(b" ", 1)[1]


@contextmanager
def asking(live: LiveHub, name: str) -> Iterator[list[Pop3Line]]:
    """Connections in both workers, with a login under way on each."""
    with ExitStack() as stack:
        lines = [stack.enter_context(Pop3Line(live)) for _ in range(MANY)]
        for line in lines:
            line.say(f"USER {address(name)}")
            line.send(f"PASS {PASSWORD}\r\n".encode())
        yield lines


def answered(lines: list[Pop3Line]) -> list[Pop3Line]:
    return select.select(lines, [], [], 0)[0] if lines else []


def has_mail(lines: list[Pop3Line]) -> int:
    """How many sessions live on; each lists its one message, one after the other."""
    found, left = 0, list(lines)
    while left:
        for line in select.select(left, [], [], DEADLINE)[0]:
            left.remove(line)
            with line, suppress(ConnectionError):
                assert line.line().startswith(b"+OK 1 message")
                line.say("QUIT")
                found += 1
    return found


def test_sessions_wait_for_mail_that_is_acknowledged(live):
    deliver(live, message(), "bob")
    with Pop3Line(live) as first:  # a login waits until the index has bob's message
        first.log_in("bob")
        first.say("QUIT")
    with SmtpLine(live) as smtp, ExitStack() as lock:
        lock.enter_context(index_locked(live.data))
        acknowledge(smtp, "alice")
        with asking(live, "alice") as lines:
            for _ in range(4):  # other sessions do not wait
                with Pop3Line(live) as other:
                    other.log_in("bob")
                    assert other.count() == 1
                    other.say("QUIT")
            assert not answered(lines)
            lock.close()
            assert has_mail(lines) == MANY


def test_mail_of_a_killed_worker_is_waited_for_until_its_recovery(live):
    """kill -9 between the 250 and the entry: acknowledged mail is never silently left out."""
    before = taken(live)
    with SmtpLine(live) as smtp, ExitStack() as lock:
        lock.enter_context(index_locked(live.data))
        acknowledge(smtp, "alice")
        live.until(lambda _: taken(live) != before, "the message counted")
        (victim,) = [pid for pid, count in taken(live).items() if count > before[pid]]
        with asking(live, "alice") as lines:
            strike(victim)
            live.until(recovery, "a recovery, which waits for the index")
            with asking(live, "alice") as later:
                assert not answered(later)
                lock.close()
                assert MANY < has_mail([*lines, *later]) < 2 * MANY


def test_a_command_waits_for_mail_of_a_killed_worker_too(live):
    deliver(live, message(), "alice")
    before = taken(live)
    command = [METAD, "mail", "list", address("alice"), "--json", "--config", str(live.config)]
    with SmtpLine(live) as smtp, ExitStack() as lock:
        lock.enter_context(index_locked(live.data))
        acknowledge(smtp, "alice")
        live.until(lambda _: taken(live) != before, "the message counted")
        (victim,) = [pid for pid, count in taken(live).items() if count > before[pid]]
        strike(victim)
        live.until(recovery, "a recovery, which waits for the index")
        with subprocess.Popen(command, stdout=subprocess.PIPE) as listing:
            assert listing.stdout is not None
            assert not select.select([listing.stdout], [], [], 1)[0]
            lock.close()
            assert len(json.loads(listing.communicate(timeout=DEADLINE)[0])) == 2


def test_a_command_that_waited_for_long_enough_says_what_is_missing(live, capsys):
    with SmtpLine(live), index_locked(live.data):
        strike(next(iter(taken(live))))
        live.until(recovery, "a recovery, which waits for the index")
        wait_for_recovery(live.data, 0.0)
        assert "is being recovered: mail is missing" in capsys.readouterr().err
    live.until(lambda facts: not recovery(facts), "the end of the recovery")
    wait_for_recovery(live.data, 0.0)
    assert capsys.readouterr().err == ""


class Client(threading.Thread):
    """Sends, and checks at once in another session, repeatedly, in its own mailbox."""

    def __init__(self, live: LiveHub, name: str, ended: threading.Event) -> None:
        super().__init__(name=name)
        self.live, self.ended = live, ended
        self.acknowledged: set[bytes] = set()
        self.looks = 0
        self.missing: set[bytes] = set()

    def run(self) -> None:
        while not self.ended.is_set() and not self.missing:
            with suppress(OSError, AssertionError), SmtpLine(self.live) as smtp:
                self.acknowledged.add(acknowledge(smtp, self.name))
            with suppress(OSError, AssertionError), Pop3Line(self.live) as pop:
                known = set(self.acknowledged)
                pop.log_in(self.name)
                listed = {line.split()[1] for line in pop.listing("UIDL").splitlines()[:-1]}
                pop.say("QUIT")
                self.looks += 1
                self.missing = known - listed


@pytest.mark.long
def test_every_session_has_all_that_was_acknowledged_while_workers_are_killed(live):
    ended = threading.Event()
    clients = [Client(live, name, ended) for name in NAMES]
    for client in clients:
        client.start()
    kills = sized(3, 20)
    try:
        for _ in range(kills):
            goals = {one: one.looks + 15 for one in clients}
            live.until(
                lambda _, goals=goals: (
                    all(one.looks >= goal for one, goal in goals.items())
                    or any(one.missing for one in clients)
                ),
                "looks",
            )
            victim = live.worker_pids()[0]
            strike(victim)
            live.whole(victim)
    finally:
        ended.set()
        together(clients)
    assert not [one.missing for one in clients if one.missing]
    reached("sessions that listed all that was acknowledged", sum(one.looks for one in clients))
    reached("kills of a worker meanwhile", kills)
