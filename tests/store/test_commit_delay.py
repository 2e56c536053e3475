"""Which clients a group waits for."""

from __future__ import annotations

from metad.store.commit_delay import LATELY_SECONDS, CommitDelay


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_who_began_is_expected_until_he_comes() -> None:
    expected = CommitDelay(Clock())
    assert expected.count() == 0
    expected.begun()
    expected.begun()
    assert expected.count() == 2
    expected.came()
    assert expected.count() == 1
    expected.came()
    assert expected.count() == 0


def test_an_unannounced_message_leaves_no_debt() -> None:
    expected = CommitDelay(Clock())
    expected.came()
    expected.begun()
    assert expected.count() == 1


def test_no_client_is_waited_for_longer_than_twice_the_time() -> None:
    clock = Clock()
    expected = CommitDelay(clock)
    expected.begun()
    clock.now += 1.5 * LATELY_SECONDS
    assert expected.count() == 1  # it began in the previous period
    expected.begun()
    clock.now += 1.5 * LATELY_SECONDS
    assert expected.count() == 1  # the first one is forgotten
    expected.came()
    assert expected.count() == 0


def test_after_a_rest_no_message_is_expected() -> None:
    clock = Clock()
    expected = CommitDelay(clock)
    expected.begun()
    clock.now += 1000 * LATELY_SECONDS
    assert expected.count() == 0
