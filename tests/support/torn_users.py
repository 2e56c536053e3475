"""A users database whose last change is cut off at any moment, and what a start makes of it.

LMDB syncs all pages but the meta page, then writes and syncs that one.  So a cut leaves either any
of the new pages and the old meta page, or all of them and the meta page as it was, new or spoiled.

Rules of this file:

* Each change is acknowledged, or under way at the cut: then it happened or not, as a whole.
* A start is a process of its own, because bad pages may end it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from metad.errors import MetadError
from metad.system import lmdb_pages
from metad.system.osio import Osio
from metad.users.database import UserDatabase
from metad.users.repair import repair_users
from tests.support.lmdb_disk import META_PAGES, PAGE, torn
from tests.support.power_kit import SECTOR
from tests.support.torn_index import in_child

Facts = dict[str, tuple[int, bytes]]  # address -> number, password
MOMENTS = (
    "pages",
    "pages torn",
    "pages spoiled",
    "meta old",
    "meta new",
    "meta torn",
    "meta spoiled",
)


class Change:
    """One change: facts and files before and after it."""

    def __init__(self, before: Facts, after: Facts, data: Path) -> None:
        self.before, self.after, self.data = before, after, data
        self.old = b""

    def file(self, rng: random.Random, moment: str) -> bytes:
        """What the disk has of the database."""
        new = (self.data / "users" / "data.mdb").read_bytes()
        length = max(len(self.old), len(new))
        old = self.old.ljust(length, b"\0")
        size = length // PAGE
        pages = {n: (page_of(old, n), page_of(new, n)) for n in range(size)}
        changed = [n for n, (was, now) in pages.items() if was != now]
        written = [n for n in changed if n >= META_PAGES]
        meta = [n for n in changed if n < META_PAGES]
        made = {n: was for n, (was, _) in pages.items()}
        if moment.startswith("pages"):
            made |= {n: pages[n][1] for n in written if rng.random() < 0.5}
            for n in rng.sample(written, min(len(written), 2)):
                if moment == "pages torn":
                    made[n] = torn(rng, [*pages[n]])
                elif moment == "pages spoiled":
                    made[n] = rng.randbytes(PAGE)
        else:
            made |= {n: pages[n][1] for n in written}
            for n in meta:
                made[n] = self._meta(rng, moment, *pages[n])
        return b"".join(made[n] for n in range(size))

    @staticmethod
    def _meta(rng: random.Random, moment: str, was: bytes, now: bytes) -> bytes:
        if moment == "meta torn":  # its sectors are whole; all that counts is in the first one
            first = rng.choice([was, now])[:SECTOR]
            return first + rng.choice([was, now])[SECTOR:]
        return {"meta old": was, "meta new": now}.get(moment) or rng.randbytes(PAGE)


def page_of(data: bytes, number: int) -> bytes:
    return data[number * PAGE : (number + 1) * PAGE]


def changes(data: Path, seed: int, count: int) -> Iterator[Change]:
    """Users added, given passwords and removed; one at a time."""
    rng = random.Random(seed)
    facts: Facts = {}
    (data / "quarantine").mkdir(parents=True)
    with UserDatabase(data / "users", create=True) as users:
        for number in range(count):
            change = Change(dict(facts), facts, data)
            change.old = (data / "users" / "data.mdb").read_bytes()
            one(users, facts, rng, number)
            change.after = dict(facts)
            yield change


def one(users: UserDatabase, facts: Facts, rng: random.Random, number: int) -> None:
    password = b"secret %d" % number
    if facts and rng.random() < 0.4:
        address = rng.choice(sorted(facts))
        if rng.random() < 0.5:
            users.remove(address)
            del facts[address]
            return
        users.set_password(address, password)
        facts[address] = facts[address][0], password
        return
    domain = "x" * rng.randrange(1, 50)
    entries = [(f"u{number}-{at}@{domain}.test", password) for at in range(rng.choice([1, 1, 40]))]
    for made in users.add_many(entries):  # one transaction
        assert not isinstance(made, MetadError)
        facts[made.address] = made.id, password


def judge(change: Change, base: Path, file: bytes) -> list[str]:
    """Start on that file, look at everything, go on; what was told.  Raises AssertionError."""
    copy = base / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    (copy / "users").mkdir(parents=True)
    (copy / "quarantine").mkdir()
    shutil.copy(change.data / "numbers", copy / "numbers")
    (copy / "users" / "data.mdb").write_bytes(file)
    code, told = in_child(lambda: live(change, copy))
    assert not code, f"{code} {told}"
    return (copy / "told").read_text().splitlines()


def live(change: Change, data: Path) -> None:
    lines = repair_users(Osio(), data / "users", data / "quarantine")
    (data / "told").write_text("\n".join(lines))
    with UserDatabase(data / "users", create=True) as users:
        users.reserve(0)
        found = facts_of(users, change)
        assert found in (change.before, change.after), differences(found, change)
        greatest = max([number for facts in (change.before, change.after)
                        for number, _ in facts.values()], default=0)  # fmt: skip
        for number in range(5):  # pages are used again
            made = users.add(f"later{number}@x.test", b"later")
            assert made.id > greatest, "a number is given a second time"
            users.remove(made.address)
        assert facts_of(users, change) == found
    assert lmdb_pages.why_wrong(Osio(), str(data / "users" / "data.mdb")) is None


def facts_of(users: UserDatabase, change: Change) -> Facts:
    """What the database has of it, each password tried."""
    found: Facts = {}
    for account in users.accounts():
        for facts in (change.before, change.after):
            number, password = facts.get(account.address, (0, b""))
            if number == account.id and users.verify(account.address, password) is not None:
                found[account.address] = number, password
        assert account.address in found, f"{account.address} is of neither moment"
        assert users.expand(account.address)[0].id == account.id
    return found


def differences(found: Facts, change: Change) -> str:
    lost = change.before.keys() & change.after.keys() - found.keys()
    return f"lost: {sorted(lost)[:5]}; of neither moment: {sorted(found)[:5]}"
