"""The walk through the index beside a hub: finds damage, and takes no change for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from metad.store.index import state as index_state
from metad.store.index.lsm import pack_usage
from metad.store.index.patrol import Patrol
from metad.store.index.rows import DisagreementError, pack_places
from metad.system.osio import Osio
from tests.support.collector_kit import collect_all, make_collector
from tests.support.sizes import SEED, sized
from tests.support.store_kit import StoreKit

Damage = Callable[[StoreKit], object]


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data") as made:
        made.start()
        for number in range(60):
            made.put([1 + number % 5 // 2, 70_000], b"%d" % number)
        made.listing(1)
        yield made


def walk(kit: StoreKit, rows: int, most: int, between: Callable[[], object] = int) -> Patrol:
    patrol = Patrol(kit.index, rows, most)
    for step in count():
        assert step < 100_000
        patrol.step()
        if patrol.done:
            return patrol
        between()
    raise AssertionError


@pytest.mark.parametrize("rows", [1, 3, 7, 1000])
@pytest.mark.parametrize("most", [0, 5, 30, 1000])
def test_a_good_index_is_walked_to_its_end(kit: StoreKit, rows: int, most: int) -> None:
    totals = kit.index.totals()
    assert walk(kit, rows, most).seen == totals["entries"] + totals["places"]
    assert index_state.suspicion(Osio(), kit.store.index) is None


def test_an_empty_index_is_walked_to_its_end(tmp_path: Path) -> None:
    with StoreKit(tmp_path / "data") as made:
        made.start()
        assert walk(made, 10, 10).seen == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", range(sized(3, 20)))
def test_no_change_meanwhile_is_taken_for_damage(kit: StoreKit, number: int) -> None:
    """Mail, deletions, sweeps between the levels, and collections."""
    dice = random.Random(SEED + number)
    collector = make_collector(kit)
    changes = iter(range(200))

    def change() -> None:
        chance = dice.random() if next(changes, None) is not None else 1.0
        box = dice.choice([1, 2, 3, 70_000, dice.randrange(1, 1 << 32)])
        if chance < 0.5:
            kit.put([box, 4], bytes(dice.randrange(3000)))
        elif chance < 0.95 and (listing := kit.listing(box)):
            some = dice.sample([one for one, _ in listing], min(len(listing), 3))
            kit.delete(box, some)
        elif 0.95 < chance < 0.98:
            collect_all(kit, collector)

    rows, most = dice.choice([(1, 5), (4, 0), (5, 20), (20, 1000)])
    while next(changes, None) is not None:
        walk(kit, rows, most, change)
    walk(kit, rows, most)
    kit.listing(1)
    assert index_state.suspicion(Osio(), kit.store.index) is None
    kit.check()


def entry(kit: StoreKit, mailbox: int) -> tuple[Any, bytes, bytes]:
    """The level, key and value of one entry."""
    with kit.index.reading() as txn:
        for level in kit.index.tables.mailboxes:
            with txn.cursor(level) as cursor:
                if cursor.set_range(mailbox.to_bytes(4, "big") + b"\0"):
                    return level, bytes(cursor.key()), bytes(cursor.value())
    raise AssertionError


def lose_an_entry(kit: StoreKit) -> None:
    level, key, _ = entry(kit, 2)
    with kit.index.writing() as txn:
        txn.delete(key, db=level)


def lose_a_row(kit: StoreKit) -> None:
    _, key, _ = entry(kit, 2)
    with kit.index.writing() as txn:
        txn.delete(key[4:], db=kit.index.tables.places)


def drop_a_reference(kit: StoreKit) -> None:
    _, key, _ = entry(kit, 2)
    with kit.index.writing() as txn:
        txn.put(key[4:], pack_places(0, kit.index.places(key[4:])), db=kit.index.tables.places)


def change_a_usage(kit: StoreKit) -> None:
    level, key, _ = entry(kit, 2)
    with kit.index.writing() as txn:
        txn.put(key[:4], pack_usage(7, 1), db=level)


def lose_a_usage(kit: StoreKit) -> None:
    level, key, _ = entry(kit, 2)
    with kit.index.writing() as txn:
        txn.delete(key[:4], db=level)


def cut_a_row(kit: StoreKit) -> None:
    _, key, _ = entry(kit, 2)
    with kit.index.writing() as txn:
        txn.put(key[4:], b"\0\0\0\1nonsense", db=kit.index.tables.places)


def add_a_strange_row(kit: StoreKit) -> None:
    with kit.index.writing() as txn:
        txn.put(b"short", pack_places(0, []), db=kit.index.tables.places)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lose_an_entry, "its usage of mailbox 2 is wrong"),
        (lose_a_row, "mailbox 2 has a message that it knows nothing of"),
        (drop_a_reference, "mailbox 2 has a message that it knows nothing of"),
        (change_a_usage, "its usage of mailbox 2 is wrong"),
        (lose_a_usage, "it has no usage of mailbox 2"),
        (cut_a_row, "requires a buffer of a multiple of"),
        (add_a_strange_row, "its rows of messages are out of order"),
    ],
)
def test_damage_is_found_noted_and_healed(
    kit: StoreKit, damage: Damage, reason: str, rows: int
) -> None:
    damage(kit)
    patrol = Patrol(kit.index, rows)
    with pytest.raises((DisagreementError, *index_state.NONSENSE), match=reason):
        while not patrol.done:
            patrol.step()
    assert patrol.done
    assert reason in (index_state.suspicion(Osio(), kit.store.index) or "")
    kit.crash()
    kit.start()
    kit.check()
    walk(kit, rows, 1000)


def test_the_entries_of_a_large_mailbox_are_looked_up_too(kit: StoreKit) -> None:
    _, key, _ = entry(kit, 70_000)
    with kit.index.writing() as txn:
        txn.delete(key[4:], db=kit.index.tables.places)
    with pytest.raises(DisagreementError, match="mailbox"):
        walk(kit, 7, 3)
