"""fsck and the trial of the index see what is wrong with the tombstones of a clustered store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metad.store.index import probe
from metad.store.index.index import Index
from metad.store.index.tombstone_rows import TombstoneRows
from tests.support.fsck_kit import assert_clean, fsck
from tests.support.store_kit import StoreKit

Spoil = Callable[[Any, Any, TombstoneRows], object]


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data", clustered=True) as kit:
        kit.start()
        first = kit.put([1, 2], b"one").id
        kit.put([1], b"two")
        kit.delete(1, [first, b"\x01" * 16])
        kit.stop()
        yield kit


def spoiled(kit: StoreKit, spoil: Spoil) -> None:
    index = Index(kit.store.index)
    table = index.tables.tombstones
    with index.writing() as txn:
        spoil(txn, table, TombstoneRows(txn, table))
    index.close()


def found(kit: StoreKit) -> list[str]:
    lines, _ = fsck(kit)
    return lines


def tried(kit: StoreKit) -> str | None:
    return probe.why_damaged(kit.store.index, lambda: None)


def test_a_good_store_is_clean(kit: StoreKit) -> None:
    assert_clean(kit)
    assert tried(kit) is None


def first_key(rows: TombstoneRows) -> bytes:
    return next(rows.keys())


def without_origin(txn: Any, table: Any, rows: TombstoneRows) -> None:
    txn.delete(b"o" + rows._txn.get(b"t" + first_key(rows), db=table)[:18], db=table)


def without_tombstone(txn: Any, table: Any, rows: TombstoneRows) -> None:
    txn.delete(b"t" + first_key(rows), db=table)


@pytest.mark.parametrize("spoil", [without_origin, without_tombstone])
def test_a_tombstone_is_under_its_origin(kit: StoreKit, spoil: Spoil) -> None:
    spoiled(kit, spoil)
    assert found(kit) == ["index: its tombstones are not under their origins"]
    assert tried(kit) == "its tombstones are not under their origins"


@pytest.mark.parametrize(
    ("key", "value"), [(b"t", b""), (b"x", b""), (b"v123", b"12345678"), (b"m\0", b"m" * 18)]
)
def test_a_row_that_cannot_be_is_found(kit: StoreKit, key: bytes, value: bytes) -> None:
    spoiled(kit, lambda txn, table, rows: txn.put(key, value, db=table))
    assert found(kit) == [f"index: a row of tombstones is damaged: {key.hex()}"]
    assert "is damaged" in str(tried(kit))


def test_a_tombstone_without_a_record_is_found(kit: StoreKit) -> None:
    key = (7).to_bytes(4, "big") + b"\x02" * 16
    spoiled(kit, lambda txn, table, rows: rows.number([key]))
    text = f"message {'02' * 16} has a tombstone in mailbox 7, and no record deletes it"
    assert found(kit) == [f"index: {text}"]


@pytest.mark.slow
def test_a_tombstone_of_listed_mail_is_found(kit: StoreKit) -> None:
    index = Index(kit.store.index)
    (alive,) = [index.listing(2)[:16]]
    index.close()
    spoiled(kit, lambda txn, table, rows: rows.number([(2).to_bytes(4, "big") + alive]))
    assert f"index: message {alive.hex()} is in mailbox 2, where its tombstone stands" in found(kit)


def test_a_damaged_tombstone_table_is_rebuilt_at_the_next_start(kit: StoreKit) -> None:
    spoiled(kit, without_tombstone)
    kit.start()
    assert any("not under their origins; rebuilding it" in line for line in kit.reports)
    kit.crash()
    kit.recover()
    assert_clean(kit)
