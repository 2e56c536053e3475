"""Stores to be checked: made, spoiled, and what fsck says of them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import lmdb

from metad.store.fsck import log_check
from metad.store.fsck.fsck import Fsck, Plan, Summary
from metad.store.index.index import Index
from metad.store.log import footer, record
from metad.store.log.header import FREE, LogHeader, log_path
from metad.store.log.scan import find_seal
from metad.system.osio import Osio
from tests.support.store_kit import StoreKit


def work(kit: StoreKit, seed: int, count: int = 40) -> None:
    """Put and delete, over all writers."""
    rng = random.Random(seed)
    for _ in range(count):
        writer = rng.randrange(len(kit.writers))
        if rng.random() < 0.3 and (listing := kit.listing(box := rng.randrange(4))):
            some = rng.sample(listing, min(len(listing), rng.randrange(1, 5)))
            kit.delete(box, [each for each, _ in some], writer)
        else:
            boxes = rng.sample(range(4), rng.randrange(1, 4))
            kit.put(boxes, rng.randbytes(rng.randrange(2000)), writer)


def stopped(kit: StoreKit, seed: int = 1, count: int = 40) -> StoreKit:
    """A store with mail in it, after a clean stop."""
    kit.start(2)
    work(kit, seed, count)
    kit.stop()
    return kit


def fsck(kit: StoreKit, **plan: bool) -> tuple[list[str], Summary]:
    """What a check reports of a store that no process has open."""
    lines: list[str] = []
    summary = Fsck(Osio(), kit.store, Plan(kit.boot, **plan), lines.append).run()
    assert summary.findings == len(lines)
    return lines, summary


def assert_clean(kit: StoreKit, **plan: bool) -> Summary:
    lines, summary = fsck(kit, **plan)
    assert lines == [], lines
    assert summary.clean
    return summary


def headers(kit: StoreKit, number: int) -> LogHeader:
    found = log_check.read_headers(Osio(), kit.store, number)
    assert found is not None
    assert found.log is not None
    return found.log


def flip(path: str, at: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        octet = file.read(1)[0]
        file.seek(at)
        file.write(bytes([octet ^ 1 << bit]))


def last_message(kit: StoreKit) -> tuple[int, footer.Entry]:
    """A log and the entry of its last message."""
    for number in log_check.log_numbers(Osio(), kit.store):
        log = headers(kit, number)
        fd = os.open(log_path(kit.store.logs, number), os.O_RDONLY)
        found = find_seal(Osio(), fd, log) if log.state != FREE else None
        os.close(fd)
        entries = footer.unpack(found.entries) if found else []
        if entries and entries[-1].kind == record.MESSAGE:
            return number, entries[-1]
    raise AssertionError("no log ends in a message")


Spoil = Callable[[lmdb.Transaction, Index], object]


def spoil_index(kit: StoreKit, spoil: Spoil) -> None:
    index = Index(kit.store.index)
    with index.writing() as txn:
        spoil(txn, index)
    index.sync()
    index.close()


def drop_entries(txn: lmdb.Transaction, index: Index) -> None:
    """The mailboxes are all empty."""
    for table in index.tables.mailboxes:
        txn.drop(table, delete=False)
