"""Which log is collected next."""

from __future__ import annotations

import pytest

from metad.store.gc.policy import OLDEST, SLACK, GcPolicy, choose, has_garbage, next_generation
from metad.store.log_table import LogState, Row

SIZE = 1000
NOW = 1_800_000_000


def row(
    number: int, live: int, *, age: int = 100, generation: int = 0, state=LogState.SEALED
) -> Row:
    return Row(number, state, NOW - age, generation, 0, 900, 1, live)


def chosen(*rows: Row, garbage: float = 0.5, older: float = 0.75, **more) -> int | None:
    found = choose(rows, GcPolicy(SIZE, garbage, older, more.pop("kept", {})), NOW, **more)
    return found and found.number


def test_the_emptier_log_of_two_equally_old() -> None:
    assert chosen(row(1, 400), row(2, 100), row(3, 300)) == 2


def test_the_older_log_of_two_equally_empty() -> None:
    assert chosen(row(1, 300, age=10), row(2, 300, age=1000), row(3, 300, age=100)) == 2


def test_an_old_log_is_worth_more_than_a_slightly_emptier_young_one() -> None:
    assert chosen(row(1, 100, age=60), row(2, 300, age=86_400)) == 2


@pytest.mark.parametrize("state", [state for state in LogState if state != LogState.SEALED])
def test_only_sealed_logs(state) -> None:
    assert chosen(row(1, 0, state=state)) is None


def test_a_log_with_too_little_garbage_is_left_alone() -> None:
    assert chosen(row(1, 501)) is None
    assert chosen(row(1, 500)) == 1


def test_an_older_generation_must_be_emptier() -> None:
    most = [
        max(live for live in range(SIZE) if chosen(row(1, live, generation=g)) is not None)
        for g in range(OLDEST + 2)
    ]
    assert most[0] == 500
    assert most[:4] == sorted(most[:4], reverse=True)
    assert len(set(most[:4])) == 4
    assert most[4] == most[3]


def test_a_full_log_s_own_slack_is_no_garbage() -> None:
    assert chosen(row(1, int(SIZE * (1 - SLACK)) + 1), garbage=0.0, older=1.0) is None
    assert chosen(row(1, int(SIZE * (1 - SLACK)) - 1), garbage=0.0, older=1.0) == 1


def test_unused_room_alone_is_no_gain() -> None:
    """Regression: sixty collections moved 12 MiB for 1 MiB of live mail, endlessly."""
    full_of_large_ones = row(1, 800)._replace(tail=800)
    assert chosen(full_of_large_ones, garbage=0.15, older=1.0) is None
    hardly_used = row(1, 300)._replace(tail=300)
    assert chosen(hardly_used, garbage=0.15, older=1.0) == 1


def test_what_is_to_be_avoided_is() -> None:
    assert chosen(row(1, 100), row(2, 200), avoid={1}) == 2


def test_deletions_that_had_to_be_kept_are_no_garbage() -> None:
    """Otherwise a log with only those would be copied forever."""
    assert chosen(row(1, 0), kept={1: 800}) is None


def test_a_full_collection_takes_whatever_has_garbage() -> None:
    assert has_garbage(row(1, 800))
    assert not has_garbage(row(1, 900))
    assert not has_garbage(row(1, 100), kept=800)


def test_generations_end() -> None:
    assert [next_generation(g) for g in range(5)] == [1, 2, 3, 3, 3]
