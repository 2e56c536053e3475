"""The listing of a mailbox as of login, made later and in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.layers import listing as listing_module
from metad.layers.listing import LATE_SECONDS, Listing
from metad.store.index.index import Index

BOX = 7
NOW = 1_700_000_000_000_000


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    (tmp_path / "index").mkdir()
    made = Index(str(tmp_path / "index"), bounds=(50,))
    yield made
    made.close()


def message_id(us: int) -> bytes:
    return us.to_bytes(8, "big") + bytes(8)


def add(index: Index, us: int, octets: int, mailbox: int = BOX) -> None:
    row = (mailbox.to_bytes(4, "big") + message_id(us), octets.to_bytes(4, "big"))
    with index._env.begin(write=True) as txn:
        index._levels.add(txn, [row])


def made(listing: Listing) -> list[tuple[int, int]]:
    """The times of the ids and the sizes, once it is made; the number of steps."""
    for _ in listing.steps():
        assert not listing.is_complete
    assert listing.is_complete
    return [
        (int.from_bytes(listing.id(n)[:8], "big"), listing.size(n))
        for n in range(1, listing.messages + 1)
    ]


def test_an_empty_mailbox_is_complete_at_once(index: Index) -> None:
    add(index, NOW, 5, mailbox=BOX - 1)
    add(index, NOW, 5, mailbox=BOX + 1)
    listing = Listing(index, BOX)
    assert (listing.messages, listing.octets, listing.is_complete) == (0, 0, True)


@pytest.mark.parametrize("count", [1, 9, 10, 11, 300])
def test_it_is_made_in_steps_over_all_levels(
    index: Index, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing_module, "STEP", 10)
    for number in range(count):
        add(index, NOW + number * 7 % 1009, number)
        add(index, NOW + number, 99, mailbox=BOX + 1)
    listing = Listing(index, BOX)
    assert listing.messages == count
    assert not listing.is_complete
    assert made(listing) == sorted((NOW + n * 7 % 1009, n) for n in range(count))
    assert listing.octets == sum(range(count))


def test_what_came_after_the_login_is_for_the_next_session(index: Index) -> None:
    for number in range(5):
        add(index, NOW + 10 * number, 100 + number)
    listing = Listing(index, BOX)
    add(index, NOW + 1000, 7)
    add(index, NOW + 25, 55)  # another worker numbered it earlier, and commits it now
    assert (listing.messages, listing.octets) == (5, 510)
    assert made(listing) == [(NOW + 10 * n, 100 + n) for n in range(5)]
    assert Listing(index, BOX).messages == 7


def test_several_that_came_late_leave_the_number_that_stat_gave(index: Index) -> None:
    for number in range(5):
        add(index, NOW + 10 * number, 100)
    listing = Listing(index, BOX)
    for number in range(3):
        add(index, NOW + 10 * number + 1, 200)
    assert len(made(listing)) == 5


def test_the_newest_was_there_whatever_a_recovery_enters_after_the_login(index: Index) -> None:
    """A worker was killed before its answer: the client goes on in another one, and the message is
    entered while the next one, of the same size and acknowledged, is listed."""
    for number in range(3):
        add(index, NOW + 10 * number, 100)
    listing = Listing(index, BOX)
    add(index, NOW + 15, 100)
    assert made(listing) == [(NOW + 10 * n, 100) for n in range(3)]


def test_a_usage_row_that_is_wrong_costs_no_message(index: Index) -> None:
    """It is a view; the entries count."""
    for number in range(3):
        add(index, NOW + 1_000_000 * LATE_SECONDS * 2 * number, 100)
    for wrong in (1, 9):
        listing = Listing(index, BOX)
        listing.messages = wrong
        if wrong == 9:
            assert len(made(listing)) == 3
            assert (listing.messages, listing.octets) == (3, 300)
        else:
            assert len(made(listing)) == 3
