"""The one back-off: it doubles, it is bounded, and it can be reset."""

from metad.system.backoff import Backoff


def test_it_doubles_up_to_its_bound() -> None:
    backoff = Backoff(0.2, 10.0)
    assert [backoff.delay(count) for count in range(8)] == [0, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10]


def test_any_number_of_failures_has_a_delay() -> None:
    assert Backoff(1.0, 60.0).delay(10**9) == 60.0
    assert Backoff(1.0, 60.0).delay(-1) == 0.0
