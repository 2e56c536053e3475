"""What metad mail tail and metad mail wait take for new."""

from __future__ import annotations

from metad.cli.mail.follow import LATE_US, Seen
from metad.cli.mail.mail import ListedMail

BASE = 1_795_942_542_000_000
SECOND = 1_000_000


def listing(*times: int) -> list[ListedMail]:
    """A mailbox with messages of these times, in microseconds."""
    ids = [one.to_bytes(8, "big") + bytes(8) for one in sorted(times)]
    return [ListedMail(number, one, one.hex(), 300) for number, one in enumerate(ids, 1)]


def times(found: list[ListedMail]) -> list[int]:
    return [int.from_bytes(one.id[:8], "big") for one in found]


def test_a_message_is_new_once() -> None:
    seen = Seen()
    assert seen.fresh([]) == []
    assert times(seen.fresh(listing(1, BASE))) == [1, BASE]
    assert seen.fresh(listing(1, BASE)) == []
    assert times(seen.fresh(listing(1, BASE, BASE + 1))) == [BASE + 1]
    assert seen.fresh(listing(BASE + 1)) == []


def test_a_message_that_another_worker_enters_late_is_new() -> None:
    """Regression: only those with a greater id than all before were."""
    seen = Seen()
    assert len(seen.fresh(listing(BASE))) == 1
    late = BASE - LATE_US + SECOND
    assert times(seen.fresh(listing(late, BASE))) == [late]
    assert seen.fresh(listing(late, BASE)) == []
    assert times(seen.fresh(listing(late, late + 1, BASE, BASE + 1))) == [late + 1, BASE + 1]


def test_only_the_ids_of_the_last_minute_are_kept() -> None:
    seen = Seen()
    all_of_them = listing(*(BASE + number * SECOND for number in range(1000)))
    assert len(seen.fresh(all_of_them)) == 1000
    assert len(seen._recent) == LATE_US // SECOND + 1
    assert seen.fresh(all_of_them) == []
