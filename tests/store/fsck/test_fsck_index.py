"""fsck finds every difference between the index and the logs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from metad.store.fsck import cross_check, grouping, log_check
from metad.store.fsck.index_snapshot import read_snapshot
from metad.store.fsck.repair import repair
from metad.store.ids import NO_ID
from metad.store.index.index import Index
from metad.store.index.lsm import pack_usage
from metad.store.index.rows import LogCounts, pack_log, pack_places
from metad.store.log import footer, record
from metad.store.log.header import LogHeader
from metad.store.log.place import Place
from metad.store.usage import Usage
from metad.system.osio import Osio
from tests.support.fsck_kit import assert_clean, fsck, spoil_index, stopped
from tests.support.store_kit import SECRET, StoreKit


class Facts:
    """A message of a good store with everything that the index says about it."""

    def __init__(self, kit: StoreKit) -> None:
        index = Index(kit.store.index)
        self.mailbox = next(box for box in range(4) if index.listing(box))
        self.id = index.listing(self.mailbox)[:16]
        self.key = self.mailbox.to_bytes(4, "big") + self.id
        with index.reading() as txn:
            having = [txn.get(self.key, db=table) is not None for table in index.tables.mailboxes]
            self.at = having.index(True)
            value = txn.get(self.key[:4], db=self.level(index))
        self.usage = Usage(int.from_bytes(value[:8], "big"), int.from_bytes(value[8:], "big"))
        self.places = index.places(self.id)
        self.log = self.places[0].log
        self.counts = index.log_counts(self.log)
        with index.reading() as txn:
            value = bytes(txn.get(self.id, db=index.tables.places))  # type: ignore[arg-type]
        self.references = int.from_bytes(value[:4], "big")
        index.close()

    def level(self, index: Index) -> Any:
        """The table that the message's entry is in."""
        return index.tables.mailboxes[self.at]


def change_entry(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    txn.put(f.key, (77).to_bytes(4, "big"), db=f.level(index))


def drop_entry(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    txn.delete(f.key, db=f.level(index))


def add_entry(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    txn.put((9).to_bytes(4, "big") + f.id, b"\0\0\0\1", db=f.level(index))


def drop_places(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    txn.delete(f.id, db=index.tables.places)


def move_place(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    wrong = [f.places[0]._replace(offset=f.places[0].offset + 512)]
    txn.put(f.id, pack_places(f.references, wrong), db=index.tables.places)


def no_place(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    txn.put(f.id, pack_places(f.references, []), db=index.tables.places)


def strange_place(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    places = [*f.places, Place(4711, 512, 100)]
    txn.put(f.id, pack_places(f.references, places), db=index.tables.places)


def place_twice(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    txn.put(f.id, pack_places(f.references, f.places * 2), db=index.tables.places)


def unknown_message(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    txn.put(b"\1" * 16, pack_places(0, [f.places[0]]), db=index.tables.places)


def more_references(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    txn.put(f.id, pack_places(f.references + 1, f.places), db=index.tables.places)


def short_place(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    txn.put(f.id, b"\0\0\0\1\0", db=index.tables.places)


def more_usage(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    value = pack_usage(f.usage.octets + 1, f.usage.messages)
    txn.put(f.key[:4], value, db=f.level(index))


def no_usage(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    txn.delete(f.key[:4], db=f.level(index))


def ghost_usage(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    txn.put(b"\0\1\0\0", pack_usage(1, 1), db=f.level(index))


def entry_in_two_levels(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    index._levels._sweep(txn, 0, 1000)
    value = bytes(txn.get(f.key, db=index.tables.mailboxes[-1]))  # type: ignore[arg-type]
    txn.put(f.key, value, db=index.tables.mailboxes[0])
    octets = int.from_bytes(value, "big")
    txn.put(f.key[:4], pack_usage(octets, 1), db=index.tables.mailboxes[0])


def long_entry(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    txn.put(f.key + b"x", b"\0\0\0\1", db=f.level(index))


def put_log(txn: lmdb.Transaction, index: Index, number: int, counts: LogCounts) -> None:
    txn.put(number.to_bytes(4, "big"), pack_log(counts), db=index.tables.logs)


def more_live(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    put_log(txn, index, f.log, f.counts._replace(live_messages=f.counts.live_messages + 1))


def less_live_octets(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    put_log(txn, index, f.log, f.counts._replace(live_octets=f.counts.live_octets - 1))


def other_life(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    put_log(txn, index, f.log, f.counts._replace(life=f.counts.life + 1))


def high_watermark(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    put_log(txn, index, f.log, f.counts._replace(watermark=f.counts.watermark + 512))


def low_watermark(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    put_log(txn, index, f.log, f.counts._replace(watermark=f.counts.watermark - 512))


def strange_log(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    put_log(txn, index, 4711, LogCounts(1, 512))


def no_log(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    txn.delete(f.log.to_bytes(4, "big"), db=index.tables.logs)


def strange_uid(txn: lmdb.Transaction, index: Index, f: Facts) -> None:
    txn.put(f.id, b"uid", db=index._uids)


SPOILERS = {
    change_entry: "has 77 bytes in mailbox",
    drop_entry: "is missing in mailbox",
    add_entry: "is in mailbox 9, and no record says so",
    drop_places: "and has no place",
    move_place: "where it is not",
    no_place: "lacks its place in log",
    strange_place: "has a place in log 4711 at 512, where it is not",
    place_twice: "has a place twice",
    unknown_message: "has a place in log",
    more_references: "mailboxes, but is in",
    short_place: "a row of places is damaged",
    more_usage: "is listed with",
    no_usage: "is listed with 0 messages of 0 bytes",
    ghost_usage: "mailbox 65536 is listed with 1 messages of 1 bytes, but has 0 of 0",
    entry_in_two_levels: "is twice in mailbox",
    long_entry: "a row of mailboxes is damaged",
    more_live: "live messages of",
    less_live_octets: "live messages of",
    other_life: "and began a new life",
    high_watermark: "the log ends at",
    low_watermark: "the log goes on to",
    strange_log: "log 4711 is not there",
    no_log: "is not in it, and has mail",
    strange_uid: "has the unique id b'uid', its record has not",
}


@pytest.mark.slow
@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_a_difference_is_found_and_repaired(kit: StoreKit, spoil: Callable[..., None]) -> None:
    stopped(kit)
    facts = Facts(kit)
    spoil_index(kit, lambda txn, index: spoil(txn, index, facts))
    lines, summary = fsck(kit)
    assert any(SPOILERS[spoil] in line for line in lines), lines
    said: list[str] = []
    repair(Osio(), kit.store, kit.boot, summary, said.append)
    assert said == ["index: as asked; rebuilding it from the logs"]
    assert_clean(kit)


def test_a_deletion_that_was_not_carried_out_is_found(kit: StoreKit) -> None:
    kit.start()
    sent = kit.put([1], b"x")
    kit.delete(1, [sent.id])
    kit.stop()
    key = (1).to_bytes(4, "big") + sent.id
    spoil_index(kit, lambda txn, index: txn.put(key, b"\0\0\0\2", db=index.tables.mailboxes[0]))
    assert f"index: message {sent.id.hex()} is in mailbox 1, where it was deleted" in fsck(kit)[0]


@pytest.mark.parametrize("clustered", [False, True])
def test_a_first_place_that_names_too_few_is_found_unless_nodes_copy(clustered: bool) -> None:
    """The copy that is served must name all mailboxes that have the message."""
    rows_ = grouping.Rows(1)
    said: list[str] = []
    done = log_check.Checked(LogHeader(1, 0, 1, 1, 8192, 512, 1, NO_ID, SECRET))
    done.entries = b"".join(
        footer.message_entries(
            b"i" * 16, offset, 100, tuple(record.Recipient(m, "", 5) for m in of)
        )
        for offset, of in ((512, (1, 2)), (1024, (2,)))
    )
    cross_check.add_entries(rows_, done, 4096)
    for mailbox in (1, 2):
        rows_.add(cross_check.INDEX_ENTRY, b"i" * 16, mailbox.to_bytes(4, "big") + b"\0\0\0\5")  # type: ignore[attr-defined]
    places = [Place(1, 1024, 100), Place(1, 512, 100)]
    for order in (places, places[::-1]):
        rows_.add(cross_check.PLACES, b"i" * 16, pack_places(2, order))  # type: ignore[attr-defined]
        comparison = cross_check.Comparison(
            {1: cross_check.KnownLog(done, 4096, False)}, True, said.append, clustered=clustered
        )
        for part in rows_:
            comparison.part(part)
    rows_.close()
    found = (
        f"index: message {(b'i' * 16).hex()} has a first place that does not name all its mailboxes"
    )
    assert said == ([] if clustered else [found])


@pytest.mark.usefixtures("index_child")
@pytest.mark.parametrize("size", [0, 100, 4096, 9000])
def test_an_index_cut_short_is_found(kit: StoreKit, size: int) -> None:
    stopped(kit)
    os.truncate(f"{kit.store.index}/data.mdb", size)
    lines, _ = fsck(kit)
    assert lines
    assert all(line.startswith("index: ") for line in lines)


def test_a_damaged_state_of_the_index_is_found(kit: StoreKit) -> None:
    stopped(kit)
    (Path(kit.store.index) / "state").write_bytes(b"{")
    assert fsck(kit)[0][0].startswith("index: its state cannot be read")


@pytest.mark.usefixtures("index_child")
def test_the_counts_alone_are_read_without_the_rest(kit: StoreKit) -> None:
    stopped(kit)
    index = Index(kit.store.index)
    logs = index.logs()
    index.close()
    assert read_snapshot(kit.store).logs == logs
