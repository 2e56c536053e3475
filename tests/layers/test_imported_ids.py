"""Unique ids of imported mail: in blocks; from the records if the index lost them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from metad.errors import RefusedError
from metad.layers.imported_ids import BLOCK, RECORDS, TURN, ImportedIds, imported_ids
from metad.store.ids import is_imported

COUNT = 3 * BLOCK + 7


def message_id(number: int) -> bytes:
    """Every third message was not imported."""
    return number.to_bytes(8, "big") + (bytes(8) if number % 3 else IMPORTED)


def _imported_tail() -> bytes:
    for octet in range(8):
        for bit in range(8):
            tail = bytearray(8)
            tail[octet] = 1 << bit
            if is_imported(bytes(8) + bytes(tail)):
                return bytes(tail)
    raise AssertionError("no id is of an import")


IMPORTED = _imported_tail()


class Index:
    """The unique ids in an index, and how often it was queried."""

    def __init__(self) -> None:
        self.known: dict[bytes, str] = {}
        self.asked: list[int] = []
        self.is_locked = False

    def uids(self, ids: Any) -> dict[bytes, str]:
        self.asked.append(len(ids))
        return {one: self.known[one] for one in ids if one in self.known}

    def try_lock(self) -> bool:
        return not self.is_locked

    def unlock(self) -> None:
        pass

    def put_uids(self, uids: dict[bytes, str]) -> None:
        self.known |= uids


class Reader:
    """Records; those with numbers ending in 9 have no id, those ending in 6 are unreadable."""

    def __init__(self) -> None:
        self.read_ids: list[bytes] = []

    def read(self, one: bytes) -> Any:
        self.read_ids.append(one)
        number = int.from_bytes(one[:8], "big")
        if number % 10 == 6:
            raise RefusedError
        uid = "" if number % 10 == 9 else f"uid-{number}"
        return SimpleNamespace(envelope=SimpleNamespace(uid=uid))


class Store:
    def __init__(self) -> None:
        self.index: Any = Index()
        self.reader: Any = Reader()


@pytest.fixture
def store() -> Store:
    return Store()


LISTING: Any = SimpleNamespace(messages=COUNT, id=message_id)
OF_IMPORTS = [number for number in range(1, COUNT + 1) if number % 3 == 0]
WITH_ID = [number for number in OF_IMPORTS if number % 10 not in (6, 9)]


def found(ids: ImportedIds) -> dict[int, str]:
    return {number: ids.get(number, message_id(number)) for number in OF_IMPORTS}


def expected() -> dict[int, str]:
    return {number: f"uid-{number}" if number in WITH_ID else "" for number in OF_IMPORTS}


def test_an_index_without_them_is_completed_in_short_steps(store: Store) -> None:
    """Regression: all were looked up and read at once, and a worker was blocked for that time."""
    ids = ImportedIds(store, LISTING, is_complete=False)
    before = 0
    for _ in ids.complete_index():
        assert len(store.reader.read_ids) - before <= RECORDS
        before = len(store.reader.read_ids)
    assert len(store.reader.read_ids) == len(OF_IMPORTS)
    assert ids.is_complete
    assert set(store.index.known.values()) == {f"uid-{number}" for number in WITH_ID}
    assert found(ids) == expected()
    assert len(store.reader.read_ids) == len(OF_IMPORTS)  # no record was read again
    assert max(store.index.asked) <= BLOCK


def test_a_complete_index_is_asked_block_by_block_and_no_record_is_read(store: Store) -> None:
    store.index.known = {message_id(number): f"uid-{number}" for number in WITH_ID}
    ids = ImportedIds(store, LISTING, is_complete=True)
    assert list(ids.complete_index()) == []
    assert found(ids) == expected()
    assert store.reader.read_ids == []
    assert len(store.index.asked) == -(-COUNT // BLOCK)
    assert len(ids._known) <= BLOCK  # for a mailbox of any length


def test_a_lock_that_is_taken_leaves_them_to_the_records(store: Store) -> None:
    store.index.is_locked = True
    ids = ImportedIds(store, LISTING, is_complete=False)
    list(ids.complete_index())
    assert not ids.is_complete
    assert store.index.known == {}
    assert found(ids) == expected()


@pytest.mark.slow
def test_numbers_may_be_asked_for_in_any_order(store: Store) -> None:
    ids = ImportedIds(store, LISTING, is_complete=False)
    for number in [*reversed(OF_IMPORTS), *OF_IMPORTS[::7]]:
        assert ids.get(number, message_id(number)) == expected()[number]


def test_a_command_gets_them_all(store: Store) -> None:
    every = [message_id(number) for number in OF_IMPORTS]
    wanted = {message_id(number): f"uid-{number}" for number in WITH_ID}
    assert imported_ids(store, every) == wanted
    assert store.index.known == wanted


@pytest.mark.slow
def test_each_step_looks_at_a_few_messages(store: Store) -> None:
    """Of which every third was imported, and all are in the index."""
    store.index.known = {message_id(number): f"uid-{number}" for number in range(0, 60_000, 3)}
    seen = 0

    def id_of(number: int) -> bytes:
        nonlocal seen
        seen += 1
        return message_id(number)

    long: Any = SimpleNamespace(messages=50_000, id=id_of)
    ids = ImportedIds(store, long, is_complete=False)
    steps = 0
    for _ in ids.complete_index():
        steps += 1
        assert seen <= BLOCK
        assert len(store.index.asked) <= 1
        seen, store.index.asked = 0, []
    assert seen <= BLOCK
    assert steps >= 50_000 // BLOCK
    assert store.reader.read_ids == []


def test_each_step_passes_a_few_messages_that_were_not_imported(store: Store) -> None:
    seen = 0

    def id_of(number: int) -> bytes:
        nonlocal seen
        seen += 1
        return message_id(1)

    long: Any = SimpleNamespace(messages=50_000, id=id_of)
    steps = 0
    for _ in ImportedIds(store, long, is_complete=False).complete_index():
        steps += 1
        assert seen <= TURN
        seen = 0
    assert seen <= TURN
    assert steps >= 50_000 // TURN
    assert store.index.asked == []
