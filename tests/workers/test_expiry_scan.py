"""The collector's scans: whose mail is deleted, when, and whose never is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad import limits
from metad.config import parse as config_parse
from metad.errors import DataError, UnavailableError
from metad.store.mailbox_locks import MailboxLocks
from metad.store.usage import Usage
from metad.system.osio import Osio
from metad.users.account import POSTMASTER_ID, Policy, pack_record, unpack_record
from metad.users.database import UserDatabase
from metad.users.lmdb_env import ID
from metad.users.policy import Policies
from metad.workers import expiry_scan
from metad.workers.expiry_scan import AGAIN_SECONDS, EVERY_SECONDS, FIRST_SECONDS, ExpiryScan
from tests.support.collector_kit import collect_all, make_collector, sealed
from tests.support.osio_kit import FakeClock, KitOsio
from tests.support.store_kit import StoreKit

DAY = 86_400
EXPIRY = '[users]\nexpiry = "10d"\n[[domain]]\nname = "slow.org"\nexpiry = 0\n'


class Hub:
    """A store with clocks set by the test, and users."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.clock = FakeClock(real=1_900_000_000 * 10**9)
        self.kit = StoreKit(data, KitOsio(clock=self.clock), size=256 * 1024)
        self.kit.start()
        with UserDatabase(data / "users", create=True) as users:
            users.reserve(0)  # as every start of a hub does
        self.policies = self.read("")

    def read(self, settings: str) -> Policies:
        file = self.data / "metad.toml"
        file.write_text(f'hostname = "mx.org"\ndata = "{self.data}"\n{settings}')
        return Policies(config_parse.load(file, None, {}))

    def wait(self, seconds: float) -> None:
        """Time passes, on both clocks."""
        self.clock.monotonic += int(seconds * 10**9)
        self.clock.real += int(seconds * 10**9)

    def user(self, address: str, policy: Policy | None = None) -> int:
        with UserDatabase(self.data / "users", create=True) as users:
            made = users.add(address)
            if policy is not None:
                users.set_policy(address, policy)
            return made.id

    def remove(self, address: str) -> None:
        """At the time that the clock shows."""
        with UserDatabase(self.data / "users") as users:
            gone = users.remove(address)
            with users.transaction(write=True) as txn:
                raw = txn.get(ID.pack(gone.id), db=users._removed)
                record = unpack_record(raw) | {"time": self.clock.real // 10**9}
                txn.put(ID.pack(gone.id), pack_record(record), db=users._removed)

    def make(self) -> ExpiryScan:
        tools = make_collector(self.kit)._tools
        return ExpiryScan(self.data / "users", self.policies, tools, self.kit.clock)

    def scan(self) -> ExpiryScan:
        made = self.make()
        list(made.scan(0))
        made.close()
        return made

    def count(self, mailbox: int) -> int:
        """Messages, by the listing; the usage has to agree."""
        found = self.kit.listing(mailbox)
        octets = sum(size for _, size in found)
        assert self.kit.index.usage(mailbox) == Usage(octets, len(found))
        return len(found)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    made = Hub(tmp_path)
    yield made
    made.kit.crash()


def test_each_user_has_its_own_expiry(hub: Hub) -> None:
    hub.policies = hub.read(EXPIRY)
    default = hub.user("a@x.org")
    own = hub.user("b@x.org", Policy(expiry=3 * DAY))
    never = hub.user("c@x.org", Policy(expiry=0))
    domain = hub.user("d@slow.org")
    everybody = [default, own, never, domain]
    hub.kit.put(everybody, b"first")
    hub.wait(5 * DAY)
    hub.kit.put(everybody, b"second")
    done = hub.scan()
    assert [hub.count(one) for one in everybody] == [2, 1, 2, 2]
    assert done.figures.messages == 1
    hub.wait(6 * DAY)
    assert hub.scan().figures.messages == 2
    assert [hub.count(one) for one in everybody] == [1, 0, 2, 2]
    hub.wait(1000 * DAY)
    hub.scan()
    assert [hub.count(one) for one in everybody] == [0, 0, 2, 2]


def test_not_a_moment_too_early(hub: Hub) -> None:
    mailbox = hub.user("a@x.org", Policy(expiry=60))
    hub.kit.put([mailbox], b"mail")
    hub.wait(59)
    hub.scan()
    assert hub.count(mailbox) == 1
    hub.wait(2)
    hub.scan()
    assert hub.count(mailbox) == 0


def test_the_postmasters_mail_goes_after_90_days(hub: Hub) -> None:
    hub.user("a@x.org")
    hub.kit.put([POSTMASTER_ID, 2], b"mail")
    hub.wait(limits.POSTMASTER_EXPIRY - 60)
    hub.scan()
    assert hub.count(POSTMASTER_ID) == 1
    hub.wait(120)
    hub.scan()
    assert (hub.count(POSTMASTER_ID), hub.count(2)) == (0, 1)


@pytest.mark.slow
def test_usage_is_exact_after_expiry_collection_crash_and_rebuild(hub: Hub) -> None:
    own = hub.user("a@x.org", Policy(expiry=DAY))
    other = hub.user("b@x.org")
    for number in range(300):
        hub.kit.put([own, other] if number % 3 else [own], b"x" * (number + 900))
        hub.wait(60)
    hub.kit.background()
    hub.wait(DAY - 150 * 60)
    collector = make_collector(hub.kit)
    scan = ExpiryScan(hub.data / "users", hub.policies, collector._tools, hub.kit.clock)
    before = {one for one, _ in hub.kit.listing(own)}
    list(scan.scan(0))
    left = hub.count(own)
    gone = [(own, one) for one in before - {one for one, _ in hub.kit.listing(own)}]
    for what in ("deleting", "deleted"):
        hub.kit.ledger.apply((what, gone))
    assert 100 < left < 200
    assert hub.count(other) == 200
    assert sealed(hub.kit)
    collect_all(hub.kit, collector)
    for rebuild in (False, True):
        assert (hub.count(own), hub.count(other)) == (left, 200)
        hub.kit.crash()
        if rebuild:
            hub.kit.drop_index()
        hub.kit.start()
    assert (hub.count(own), hub.count(other)) == (left, 200)
    assert hub.kit.check() == left + 200


# --- Removed users --------------------------------------------------------------------------------


def test_a_removed_users_mail_goes_and_no_one_elses(hub: Hub) -> None:
    ann, bob = hub.user("ann@x.org"), hub.user("bob@x.org")
    hub.kit.put([ann, bob], b"mail")
    hub.kit.put([ann], b"mail")
    hub.remove("ann@x.org")
    again = hub.user("ann@x.org")
    assert again not in (ann, bob)
    hub.kit.put([again], b"new")
    # A session that had its RCPT before the removal.
    hub.kit.put([ann], b"late")
    done = hub.scan()
    assert [hub.count(one) for one in (ann, bob, again)] == [0, 1, 1]
    assert done.figures.messages == 3
    assert done.orphans == 0


def test_orphaned_mail_is_kept_and_reported(hub: Hub) -> None:
    known = hub.user("ann@x.org")
    strangers = list(range(50, 58))
    for one in strangers:
        hub.kit.put([one, known], b"mail")
    hub.wait(1000 * DAY)
    scan = hub.make()
    for turn in range(2):
        list(scan.scan(turn))
    assert all(hub.count(one) == 1 for one in strangers)
    assert scan.orphans == 8
    said = [line for line in hub.kit.reports if "orphaned" in line]
    assert said == [
        "warning: orphaned mail is kept: 8 mailboxes are not in the users database: "
        "50, 51, 52, 53, 54, …"
    ]


def test_a_lost_users_database_costs_no_mail(hub: Hub) -> None:
    ann = hub.user("ann@x.org", Policy(expiry=60))
    hub.kit.put([ann], b"mail")
    hub.wait(1000 * DAY)
    shutil.rmtree(hub.data / "users")
    with pytest.raises(UnavailableError):
        hub.scan()
    assert hub.count(ann) == 1
    new = hub.user("ann@x.org")
    assert new != ann
    assert hub.scan().orphans == 1
    assert (hub.count(ann), hub.count(new)) == (1, 0)


def test_an_older_users_database_costs_no_mail(hub: Hub) -> None:
    """Restored from before some users were added, it gives their numbers to no one, so that no
    tombstone ever speaks of their mail."""
    hub.user("ann@x.org")
    shutil.copytree(hub.data / "users", hub.data / "copy")
    bob = hub.user("bob@x.org")
    hub.kit.put([bob], b"mail")
    shutil.rmtree(hub.data / "users")
    shutil.copytree(hub.data / "copy", hub.data / "users")
    cid = hub.user("cid@x.org")
    hub.remove("cid@x.org")
    hub.wait(1000 * DAY)
    hub.scan()
    assert cid != bob
    assert hub.count(bob) == 1


def test_mail_that_came_long_after_a_removal_was_for_an_existing_user(hub: Hub) -> None:
    """By another database, restored in between: this one's removal is not about that mail."""
    ann = hub.user("ann@x.org")
    hub.kit.put([ann], b"before")
    hub.remove("ann@x.org")
    hub.wait(expiry_scan.GRACE_SECONDS + 60)
    hub.kit.put([ann], b"after")
    hub.scan()
    assert hub.count(ann) == 1


def test_a_damaged_users_database_costs_no_mail(hub: Hub) -> None:
    ann = hub.user("ann@x.org", Policy(expiry=60))
    hub.kit.put([ann], b"mail")
    hub.wait(1000 * DAY)
    (hub.data / "users" / "data.mdb").write_bytes(b"\xff" * 8192)
    with pytest.raises(DataError):
        hub.scan()
    assert hub.count(ann) == 1


# --- Clocks, and when -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_clock_that_was_ahead_at_the_start_deletes_nothing_once_it_is_right(hub: Hub) -> None:
    mailbox = hub.user("a@x.org", Policy(expiry=DAY))
    hub.kit.put([mailbox], b"mail")
    hub.kit.crash()
    hub.clock.real += 10_000 * DAY * 10**9
    hub.kit.start()
    hub.clock.real -= 10_000 * DAY * 10**9
    hub.scan()
    assert hub.count(mailbox) == 1
    hub.wait(2 * DAY)
    hub.scan()
    assert hub.count(mailbox) == 0


def test_a_clock_that_runs_back_deletes_late(hub: Hub) -> None:
    mailbox = hub.user("a@x.org", Policy(expiry=DAY))
    hub.kit.put([mailbox], b"mail")
    hub.clock.real -= 100 * DAY * 10**9
    hub.wait(2 * DAY)
    hub.scan()
    assert hub.count(mailbox) == 1


def test_a_walk_every_hour_and_not_at_once(hub: Hub) -> None:
    mailbox = hub.user("a@x.org", Policy(expiry=1))
    scan = hub.make()

    def steps(now: float) -> int:
        hub.kit.put([mailbox], b"mail")
        hub.wait(10)
        before = scan.figures.messages
        for _ in scan.steps(now):
            pass
        return scan.figures.messages - before

    assert steps(0) == 0
    assert steps(FIRST_SECONDS - 1) == 0
    assert steps(FIRST_SECONDS) == 3
    assert steps(FIRST_SECONDS + EVERY_SECONDS - 1) == 0
    assert steps(FIRST_SECONDS + EVERY_SECONDS) == 2


def test_a_mailbox_in_use_is_looked_at_again_soon(hub: Hub) -> None:
    mailbox, other = (hub.user(f"{name}@x.org", Policy(expiry=1)) for name in "ab")
    hub.kit.put([mailbox, other], b"mail")
    hub.wait(10)
    session = MailboxLocks(Osio(), hub.kit.store.locks)
    assert session.acquire(mailbox)
    scan = hub.make()
    list(scan.scan(5))
    assert (hub.count(mailbox), hub.count(other)) == (1, 0)
    list(scan.steps(5 + AGAIN_SECONDS - 1))
    list(scan.steps(5 + AGAIN_SECONDS))
    assert hub.count(mailbox) == 1
    session.release(mailbox)
    list(scan.steps(5 + 2 * AGAIN_SECONDS))
    assert hub.count(mailbox) == 0
    assert list(scan.steps(5 + 3 * AGAIN_SECONDS)) == []
    session.close()


def test_a_walk_goes_in_small_steps(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many mailboxes there are with nothing due."""
    monkeypatch.setattr(expiry_scan, "PIECE", 10)
    for mailbox in range(2, 97):
        hub.kit.submit([mailbox], b"mail")
    hub.kit.run()
    with UserDatabase(hub.data / "users", create=True) as users:
        list(users.add_many((f"u{number}@x.org", None) for number in range(95)))
    asked: list[int] = []
    owners = UserDatabase.owners

    def counted(self, numbers):
        asked.append(len(numbers))
        return owners(self, numbers)

    monkeypatch.setattr(UserDatabase, "owners", counted)
    steps = 0
    for _ in hub.make().scan(0):
        steps += 1
        assert sum(asked) <= steps * 10
    assert (steps, sum(asked)) == (10, 95)
