"""A spooled message: its memory is counted, and it goes to a file if there is no room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metad.budget import Budget, Lease
from metad.layers.spool import Spool, SpooledBody
from metad.limits import CHUNK_MEMORY, MESSAGE_MEMORY, SMALL_MESSAGE
from metad.system.osio import LEFT_FREE, Osio
from tests.support.osio_kit import KitOsio


def spool(path: Path, budget: Budget) -> Spool:
    return Spool(Osio(), str(path), budget)


def whole(one: Spool) -> bytes:
    return b"".join(one.parts if one.in_memory else one.pieces())


def test_a_small_message_counts_from_its_first_byte(tmp_path: Path) -> None:
    """Regression: ten thousand of 64 KiB, each below a size that was not counted, were 640 MB
    beyond the budget."""
    budget = Budget()
    one, other = spool(tmp_path, budget), spool(tmp_path, budget)
    one.write(b"abc")
    one.write(b"de")
    other.write(b"x" * 1000)
    assert budget.used == 3 + 2 + 1000 + 3 * CHUNK_MEMORY
    one.close()
    one.close()
    assert budget.used == 1000 + CHUNK_MEMORY
    other.close()
    assert budget.used == 0


def test_what_exceeds_the_budget_goes_to_a_file_and_comes_back_the_same(tmp_path: Path) -> None:
    budget = Budget(1100)
    first, second = spool(tmp_path, budget), spool(tmp_path, budget)
    first.write(b"a" * 800)
    second.write(b"b" * 100)
    assert second.in_memory
    second.write(b"c" * 100)
    assert not second.in_memory
    second.write(b"d")
    assert whole(second) == b"b" * 100 + b"c" * 100 + b"d"
    assert second.size == 201
    assert budget.used == 800 + CHUNK_MEMORY
    first.close()
    # A message that has begun its file stays there.
    second.write(b"e")
    assert whole(second).endswith(b"de")
    assert budget.used == 0
    assert b"".join(SpooledBody(b"trace", second).chunks()) == b"trace" + whole(second)
    second.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_large_messages_leave_half_of_the_budget_to_small_ones(tmp_path: Path) -> None:
    """Clients with half a large message each must not force every small one into its own file:
    those are committed one by one."""
    budget = Budget()
    large = [spool(tmp_path, budget) for _ in range(200)]
    for one in large:
        one.write(b"x" * (SMALL_MESSAGE + 1))
        one.write(b"x" * 400_000)
    assert budget.used <= budget.half
    small = [spool(tmp_path, budget) for _ in range(400)]
    for one in small:
        one.write(b"y" * SMALL_MESSAGE)
    assert all(one.in_memory for one in small)
    assert not all(one.in_memory for one in large)
    for one in large + small:
        one.close()
    assert budget.used == 0


def test_one_message_has_no_more_than_its_part(tmp_path: Path) -> None:
    budget = Budget()
    one = spool(tmp_path, budget)
    one.write(b"x" * MESSAGE_MEMORY)
    assert one.in_memory
    one.write(b"y")
    assert not one.in_memory
    assert one.size == MESSAGE_MEMORY + 1
    assert budget.used == 0
    one.close()


def test_a_message_in_pieces_of_two_bytes_cannot_hold_more_than_the_budget(tmp_path: Path) -> None:
    """Python needs thirty times the size of such a piece."""
    budget = Budget(100_000)
    one = spool(tmp_path, budget)
    for _ in range(10_000):
        one.write(b"xy")
        assert budget.used <= budget.limit
    assert not one.in_memory
    assert whole(one) == b"xy" * 10_000
    one.close()


def test_a_file_that_cannot_be_had_gives_back_what_was_held(tmp_path: Path) -> None:
    budget = Budget(100)
    one = spool(tmp_path / "missing", budget)
    one.write(b"x")
    with pytest.raises(OSError, match="missing"):
        one.write(b"y" * 100)
    one.close()
    assert budget.used == 0


def test_a_lease_is_given_back_when_it_is_forgotten() -> None:
    budget = Budget(100)
    lease = Lease(budget)
    assert lease.take(60)
    assert lease.take(40)
    assert not lease.take(1)
    assert budget.used == 100
    assert budget.half == 50
    del lease
    assert budget.used == 0


def test_a_file_leaves_the_last_blocks_of_the_disk_to_the_index(tmp_path: Path) -> None:
    osio = KitOsio(str(tmp_path))
    one = Spool(osio, str(tmp_path), Budget(0))
    osio.space = 1000 + LEFT_FREE
    one.write(bytes(1000))
    osio.space = 999 + LEFT_FREE
    with pytest.raises(OSError, match="No space"):
        one.write(bytes(1000))
    assert one.read(0, 2000) == bytes(1000)
    one.close()
