"""What is acknowledged survives: a stop, kill -9 of one worker or of everything, a lost index."""

import os
import random
import shutil
import signal
import threading
from contextlib import suppress

import pytest

from tests.support.clients import (
    Pop3Line,
    SmtpLine,
    bodies,
    deliver,
    digest,
    fetch,
    message,
    random_body,
    together,
    unique_ids,
    wait_for_login,
    without_trace,
)
from tests.support.hub import Hub
from tests.support.sizes import reached, sized

NAMES = ["alice", "bob", "carol"]


@pytest.fixture
def own_hub():
    with Hub(NAMES) as hub:
        yield hub


def test_a_restart_changes_nothing(own_hub):
    sent = fill(own_hub)
    before = {name: unique_ids(own_hub, name) for name in NAMES}
    own_hub.restart()
    assert {name: unique_ids(own_hub, name) for name in NAMES} == before
    assert {name: bodies(own_hub, name) for name in NAMES} == sent


def test_an_index_that_is_gone_is_made_again_from_the_logs(own_hub):
    sent = fill(own_hub)
    del sent["alice"][1]
    with Pop3Line(own_hub) as pop:
        pop.log_in("alice")
        pop.say("DELE 2")
        pop.say("QUIT")
    before = {name: unique_ids(own_hub, name) for name in NAMES}
    own_hub.stop()
    shutil.rmtree(own_hub.data / "index")
    own_hub.start()
    assert {name: bodies(own_hub, name) for name in NAMES} == sent
    assert {name: unique_ids(own_hub, name) for name in NAMES} == before


def test_an_index_lost_with_kill_9_is_made_again_from_the_logs(own_hub):
    sent = fill(own_hub)
    own_hub.kill()
    shutil.rmtree(own_hub.data / "index")
    own_hub.start()
    assert {name: bodies(own_hub, name) for name in NAMES} == sent


def test_what_quit_deleted_stays_deleted_after_kill_9(own_hub):
    fill(own_hub)
    fetch(own_hub, "alice", delete=True)
    own_hub.kill()
    own_hub.start()
    assert fetch(own_hub, "alice") == []
    own_hub.kill()
    shutil.rmtree(own_hub.data / "index")
    own_hub.start()
    assert fetch(own_hub, "alice") == []


def test_a_killed_worker_frees_its_mailboxes_and_is_replaced(own_hub):
    with Pop3Line(own_hub) as holder:
        holder.log_in("alice")
        (pid,) = (one["pid"] for one in own_hub.status()["workers"] if one["pop3_open"])
        os.kill(pid, signal.SIGKILL)
        assert holder.input.read() == b""
    wait_for_login(own_hub, "alice")
    sent = message()
    deliver(own_hub, sent, "alice")
    assert bodies(own_hub, "alice") == [sent]


def test_mail_of_a_killed_worker_is_served_by_the_others(own_hub):
    sent = fill(own_hub)
    for pid in own_hub.workers():
        os.kill(pid, signal.SIGKILL)
    for name in NAMES:
        wait_for_login(own_hub, name)
    assert {name: bodies(own_hub, name) for name in NAMES} == sent
    own_hub.restart()
    assert {name: bodies(own_hub, name) for name in NAMES} == sent


def test_shared_memory_of_a_killed_hub_is_removed_by_the_next(own_hub):
    left = set(own_hub.shared)
    own_hub.kill()
    own_hub.start()
    own_hub.stop()
    assert left
    assert not [path for path in left if path.exists()]


@pytest.mark.parametrize("turn", range(sized(1, 4)))
@pytest.mark.parametrize("victim", ["everything", "master", "worker"])
def test_kill_9_during_delivery_loses_nothing_acknowledged(own_hub, dice, victim, turn):
    """Several senders and a reader; then kill; all promises must hold."""
    record = Record()
    for _ in range(2):
        work = [Sender(own_hub, record, random.Random(dice.random())) for _ in range(4)]
        work.append(Reader(own_hub, record))  # type: ignore[arg-type]
        for one in work:
            one.start()
        record.wait_for(40)
        strike(own_hub, victim)
        for one in work:
            one.ended.set()
        together(work)
        if own_hub.process is None:
            own_hub.start()
        check(own_hub, record)
    own_hub.restart()
    check(own_hub, record)
    own_hub.stop()
    shutil.rmtree(own_hub.data / "index")
    own_hub.start()
    check(own_hub, record)
    reached("row 3, kill -9 of a hub's processes under load: kills", 2)


def strike(hub: Hub, victim: str) -> None:
    if victim == "worker":
        os.kill(hub.workers()[0], signal.SIGKILL)
    elif victim == "master":
        hub.kill_master()
    else:
        hub.kill()


def check(hub: Hub, record: "Record") -> None:
    """The oracle, by digest: everything acknowledged, nothing deleted, nothing twice or unsent."""
    for name in NAMES:
        wait_for_login(hub, name)
        found = [digest(body) for body in bodies(hub, name)]
        assert len(found) == len(set(found))
        kept = {one for one, where in record.acknowledged.items() if name in where}
        missing = kept - record.deleted[name] - record.doubtful[name] - set(found)
        assert not missing
        assert not set(found) & record.deleted[name]
        assert set(found) <= record.sent


class Record:
    """What was sent, acknowledged, deleted, and what is undecided."""

    def __init__(self) -> None:
        self.sent: set[str] = set()
        self.acknowledged: dict[str, tuple[str, ...]] = {}
        self.deleted: dict[str, set[str]] = {name: set() for name in NAMES}
        self.doubtful: dict[str, set[str]] = {name: set() for name in NAMES}
        self.changed = threading.Condition()

    def acknowledge(self, one: str, names: tuple[str, ...]) -> None:
        with self.changed:
            self.acknowledged[one] = names
            self.changed.notify_all()

    def wait_for(self, more: int) -> None:
        with self.changed:
            goal = len(self.acknowledged) + more
            assert self.changed.wait_for(lambda: len(self.acknowledged) >= goal, 30)


class Sender(threading.Thread):
    """Sends to one, two or three mailboxes until its connection breaks or it must end."""

    def __init__(self, hub: Hub, record: Record, dice: random.Random) -> None:
        super().__init__()
        self.hub, self.record, self.dice = hub, record, dice
        self.ended = threading.Event()

    def run(self) -> None:
        with suppress(OSError), SmtpLine(self.hub) as smtp:
            while not self.ended.is_set():
                octets = message(random_body(self.dice, 5000))
                names = tuple(self.dice.sample(NAMES, self.dice.randrange(1, 4)))
                self.record.sent.add(digest(octets))
                smtp.deliver(octets, *names)
                self.record.acknowledge(digest(octets), names)


class Reader(threading.Thread):
    """Fetches and deletes half of one mailbox, repeatedly.  A deletion whose QUIT was not answered
    may or may not have happened."""

    def __init__(self, hub: Hub, record: Record) -> None:
        super().__init__()
        self.hub, self.record = hub, record
        self.ended = threading.Event()

    def run(self) -> None:
        with suppress(OSError):
            while not self.ended.is_set():
                self.session(NAMES[0])

    def session(self, name: str) -> None:
        with Pop3Line(self.hub) as pop:
            pop.log_in(name)
            marked = set()
            for number in range(1, pop.count() + 1, 2):
                marked.add(digest(without_trace(pop.retrieve(number))))
                pop.say(f"DELE {number}")
            self.record.doubtful[name] |= marked
            pop.say("QUIT")
            self.record.deleted[name] |= marked
            self.record.doubtful[name] -= marked


def fill(hub: Hub) -> dict[str, list[bytes]]:
    """A few messages for each, some for all.  Returns the contents of each mailbox."""
    sent: dict[str, list[bytes]] = {name: [] for name in NAMES}
    for names in (("alice",), NAMES, ("bob",), ("alice", "carol"), NAMES):
        octets = message()
        deliver(hub, octets, *names)
        for name in names:
            sent[name].append(octets)
    return sent
