"""How many waiting records become one group."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from metad.store.commit.group import GROUP_OCTETS, GROUP_RECORDS, GROUP_ROWS, take_group
from metad.store.log.encode import Append, append_deletion
from metad.store.log.record import Deletion


def message(octets: int, *, spooled: bool = False) -> Append:
    return Append(bytes(16), b"", None if spooled else (bytes(octets),), octets, print, ())


def deletion(count: int) -> Append:
    return append_deletion(bytes(16), Deletion(1, bytes(16 * count)), print)


def groups(*items: Append) -> Iterator[int]:
    waiting = deque(items)
    while waiting:
        yield len(take_group(waiting))


def test_records_and_bytes_bound_a_group() -> None:
    assert list(groups(*[message(0)] * (GROUP_RECORDS + 1))) == [GROUP_RECORDS, 1]
    assert list(groups(*[message(GROUP_OCTETS // 2 - 100)] * 5)) == [2, 2, 1]


def test_a_record_larger_than_the_bounds_is_a_group() -> None:
    assert list(groups(message(2 * GROUP_OCTETS), message(1))) == [1, 1]
    assert list(groups(deletion(GROUP_ROWS + 1), deletion(1))) == [1, 1]


def test_a_spooled_message_is_a_group_of_its_own() -> None:
    assert list(groups(message(1), message(1, spooled=True), message(1), message(1))) == [1, 1, 2]


def test_a_quit_of_many_deletions_is_many_groups() -> None:
    """Regression: 225,000 in one index transaction held the write lock for 0.6 s."""
    sizes = list(groups(*[deletion(250)] * 900))
    assert sum(sizes) == 900
    assert max(sizes) * 250 <= GROUP_ROWS
