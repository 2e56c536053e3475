"""Limits of one client network: connections, messages, failed logins, checks."""

from __future__ import annotations

import pytest

from metad import limits
from metad.sessions.client import peer_name
from metad.sessions.networks import LOCAL, Networks, is_near, network_of
from metad.sessions.rate_limiter import Caps
from metad.sessions.shared_counts import SharedCounts
from metad.system.shared_memory import Cell, Tally
from tests.support.session_kit import make_limiter, shared_area


def test_a_network_has_its_cap_and_others_have_theirs() -> None:
    limiter = make_limiter(Caps(100, 3, 1000))
    assert [limiter.enter("a") for _ in range(4)] == [True, True, True, False]
    assert limiter.enter("b")
    limiter.leave("a")
    assert limiter.enter("a")
    assert not limiter.enter("a")


def test_all_together_have_a_cap_too() -> None:
    limiter = make_limiter(Caps(5, 3, 1000))
    assert [limiter.enter(str(number)) for number in range(6)] == [True] * 5 + [False]
    limiter.leave("0")
    assert limiter.enter("6")
    assert limiter.connections == 5


def test_a_unix_socket_has_no_network() -> None:
    limiter = make_limiter(Caps(5, 3, 1000))
    assert [limiter.enter(LOCAL) for _ in range(6)] == [True] * 5 + [False]


def test_networks_without_connections_are_forgotten() -> None:
    limiter = make_limiter(Caps(100, 3, 1000))
    for number in range(1000):
        assert limiter.enter(str(number))
        limiter.leave(str(number))
    assert limiter.connections == 0
    assert limiter._open == {}


def workers(caps: Caps, count: int = 2, rate: int = 0):
    """The limiters of the workers of one hub."""
    area = shared_area()
    return [make_limiter(caps, rate, area, index) for index in range(1, count + 1)]


def test_all_workers_together_keep_the_cap_in_all_however_the_kernel_spreads() -> None:
    one, two, three = workers(Caps(10, 10, 10), 3)
    assert [one.enter(f"a{number}") for number in range(9)] == [True] * 9
    assert two.enter("b")
    assert not three.enter("c")
    assert not one.enter("c")
    one.leave("a0")
    assert three.enter("c")
    assert [limiter.connections for limiter in (one, two, three)] == [8, 1, 1]


def test_a_worker_that_starts_later_in_another_row_counts_too() -> None:
    """Only the rows that children have had so far are read."""
    area = shared_area()
    caps = Caps(4, 10, 10)
    area.use_row(area.process(1))
    first = make_limiter(caps, 0, area, 1)
    assert area.rows_used == 2
    assert all(first.enter(f"a{number}") for number in range(2))
    area.use_row(area.process(159))
    area.use_row(area.process(3))
    assert area.rows_used == 160
    late = make_limiter(caps, 0, area, 159)
    assert all(late.enter(f"b{number}") for number in range(2))
    assert not first.enter("c")
    assert not late.enter("c")


def test_one_relay_may_have_a_thousand_connections_to_one_worker_and_no_more_to_two() -> None:
    caps = Caps(10_000, limits.NETWORK_CONNECTIONS, 10_000)
    one, two = workers(caps)
    assert all(one.enter("relay") for _ in range(1000))
    assert not one.enter("relay")
    # Only the connections that the other worker does not publish may be added.
    more = sum(two.enter("relay") for _ in range(1000))
    assert more == 0
    for _ in range(500):
        one.leave("relay")
    assert sum(two.enter("relay") for _ in range(1000)) == 500
    assert two.enter("another")


def test_unshown_connections_are_all_that_may_come_above_a_networks_cap() -> None:
    one, two = workers(Caps(10_000, 1000, 10_000))
    for _ in range(limits.UNPUBLISHED_CONNECTIONS):
        assert two.enter("relay")
    assert sum(one.enter("relay") for _ in range(1100)) == 1000
    assert two.enter("other")
    assert not two.enter("relay")


def test_a_network_that_left_is_out_of_the_table() -> None:
    area = shared_area()
    limiter = make_limiter(Caps(100, 50, 100), area=area)
    for number in range(40):
        assert limiter.enter(str(number))
        assert limiter.enter(str(number))
    assert any(area.process(1).tally(Tally.CONNECTIONS))
    for number in range(40):
        limiter.leave(str(number))
        limiter.leave(str(number))
    assert not any(area.process(1).tally(Tally.CONNECTIONS))
    assert area.process(1)[Cell.CONNECTIONS] == 0


def test_the_connections_of_a_dead_worker_do_not_count() -> None:
    area = shared_area()
    one = make_limiter(Caps(10, 10, 10), area=area, index=1)
    two = make_limiter(Caps(10, 10, 10), area=area, index=2)
    assert [one.enter("a") for _ in range(10)] == [True] * 10
    assert not two.enter("a")
    area.process(1).forget_clients()
    assert two.enter("a")


def test_shared_memory_that_was_scribbled_on_shuts_no_client_out() -> None:
    area = shared_area()
    limiter = make_limiter(Caps(100, 10, 100), area=area)
    for index in range(2, 160):
        area.process(index)[Cell.CONNECTIONS] = (1 << 63) + index
    assert limiter.enter("a")
    area.process(1)[Cell.CONNECTIONS] = 1 << 63
    assert limiter.enter("a")
    assert area.process(1)[Cell.CONNECTIONS] == 2


def test_a_full_bucket_leaves_a_network_to_each_worker_alone() -> None:
    area = shared_area()
    one, two = (SharedCounts(area, area.process(index)) for index in (1, 2))
    for index in (1, 2):
        area.process(index)[Cell.ROLE] = 1
    table = area.process(1).tally(Tally.CONNECTIONS)
    for at in range(len(table)):
        table[at] = 1 << 20  # another network's, everywhere
    one.publish(Tally.CONNECTIONS, "a", 5)
    assert two.of_others(Tally.CONNECTIONS, "a") == 0
    one.forget(Tally.CONNECTIONS)
    one.publish(Tally.CONNECTIONS, "a", 5)
    assert two.of_others(Tally.CONNECTIONS, "a") == 5
    assert one.of_others(Tally.CONNECTIONS, "a") == 0


def test_the_descriptors_of_a_worker_are_a_cap_too() -> None:
    one, two = workers(Caps(100, 100, 3))
    assert [one.enter("a") for _ in range(4)] == [True, True, True, False]
    assert two.enter("a")
    assert one.is_crowded


def test_it_is_crowded_above_four_fifths() -> None:
    limiter = make_limiter(Caps(10, 10, 10))
    crowded = []
    for _ in range(10):
        limiter.enter("a")
        crowded.append(limiter.is_crowded)
    assert crowded == [False] * 8 + [True, True]


def test_slow_senders_have_an_hour_and_in_a_crowd_a_minute_and_a_rate() -> None:
    limiter = make_limiter(Caps(10, 10, 1000))
    assert not limiter.is_too_slow(0, 3600)
    assert limiter.is_too_slow(0, 3601)
    assert not limiter.is_too_slow(500_000, 4600)
    for _ in range(10):
        limiter.enter("a")
    assert not limiter.is_too_slow(0, 60)
    assert limiter.is_too_slow(0, 61)
    # 30 MiB at 500 octets per second are never cut.
    assert not limiter.is_too_slow(30 << 20, (30 << 20) / limits.MIN_DATA_RATE)


def test_messages_are_counted_by_the_minute() -> None:
    limiter = make_limiter(Caps(10, 10, 1000), rate=2)
    assert [limiter.may_send("a", 0), limiter.may_send("a", 1), limiter.may_send("a", 59)] == [
        True,
        True,
        False,
    ]
    assert limiter.may_send("b", 59)
    assert limiter.may_send("a", 60)
    one, two = workers(Caps(10, 10, 10), rate=3)
    assert [limiter.may_send("a", 0) for limiter in (one, two, one, two, one)] == [True] * 3 + [
        False
    ] * 2
    assert two.may_send("a", 61)
    assert [limiter.may_send(LOCAL, 0) for _ in range(5)] == [True] * 5


def test_a_network_waits_longer_before_each_login_after_failures_and_is_forgiven() -> None:
    limiter = make_limiter(Caps(10, 10, 1000))
    delays = []
    for _ in range(7):
        delays.append(limiter.login_delay("a", 0))
        limiter.login_failed("a", 0)
    assert delays == [0, 1, 2, 4, 8, 15, 15]
    assert limiter.login_delay("b", 0) == 0
    assert limiter.login_delay("a", limits.LOGIN_FAILURE_MEMORY) == 15
    assert limiter.login_delay("a", limits.LOGIN_FAILURE_MEMORY + 1) == 0
    limiter.login_failed("a", limits.LOGIN_FAILURE_MEMORY + 1)
    assert limiter.login_delay("a", limits.LOGIN_FAILURE_MEMORY + 1) == 1
    for _ in range(5000):
        limiter.login_failed("c", 0)
    assert limiter.login_delay("c", 0) == limits.MAX_LOGIN_FAILURE_DELAY


def test_failures_are_shared_by_the_workers() -> None:
    one, two, three = workers(Caps(10, 10, 10), count=3)
    for number in range(4):
        (one, two)[number % 2].login_failed("a", 10_000)
    assert [worker.login_delay("a", 10_000) for worker in (one, two, three)] == [8, 8, 8]
    assert three.login_delay("b", 10_000) == 0
    later = 10_000 + limits.LOGIN_FAILURE_MEMORY + 20
    assert [worker.login_delay("a", later) for worker in (one, two, three)] == [0, 0, 0]


@pytest.mark.slow
def test_a_full_table_of_failures_makes_room_when_they_are_forgotten() -> None:
    one, two = workers(Caps(10, 10, 10))
    for number in range(20_000):
        one.login_failed(str(number), 0)
    later = limits.LOGIN_FAILURE_MEMORY + 20
    one.login_failed("late", later)
    assert two.login_delay("late", later) == 1


def test_a_failed_login_is_answered_after_longer_than_any_check_took() -> None:
    limiter = make_limiter(Caps(10, 10, 1000))
    assert limiter.answer_after == limits.LOGIN_FAILURE_DELAY
    limiter.note_check(0.3)
    assert limiter.answer_after == limits.LOGIN_FAILURE_DELAY
    limiter.note_check(2.3)
    limiter.note_check(0.1)
    assert limiter.answer_after == 3
    limiter.note_check(1000)
    assert limiter.answer_after == limits.MAX_LOGIN_FAILURE_DELAY


@pytest.mark.slow
def test_what_is_remembered_of_networks_is_bounded() -> None:
    limiter = make_limiter(Caps(10, 10, 1000))
    for number in range(limits.NETWORKS_REMEMBERED + 100):
        limiter.login_failed(str(number), 0)
    assert len(limiter._past) == limits.NETWORKS_REMEMBERED


def test_few_checks_of_a_network_run_at_once_and_the_others_wait_in_order() -> None:
    limiter = make_limiter(Caps(10, 10, 1000))
    begun: list[int] = []
    for number in range(limits.LOGIN_CHECKS + 3):
        limiter.check("a", lambda number=number: begun.append(number) or True)  # type: ignore[misc]
    limiter.check("b", lambda: begun.append(99) or True)
    first = list(range(limits.LOGIN_CHECKS))
    assert begun == [*first, 99]
    for _ in range(limits.LOGIN_CHECKS + 3):
        limiter.checked("a")
    limiter.checked("b")
    assert begun == [*first, 99, *range(limits.LOGIN_CHECKS, limits.LOGIN_CHECKS + 3)]
    assert limiter._checks == {}


def test_a_thousand_clients_that_left_the_queue_are_skipped_and_hold_no_turn() -> None:
    """Regression: each called the next: with more than Python's stack holds, the turn was lost."""
    limiter = make_limiter(Caps(10, 10, 10))
    for _ in range(limits.LOGIN_CHECKS):
        limiter.check("a", lambda: True)
    for _ in range(3000):
        limiter.check("a", lambda: False)
    begun: list[int] = []
    limiter.check("a", lambda: begun.append(1) or True)
    limiter.checked("a")
    assert begun == [1]
    for _ in range(limits.LOGIN_CHECKS):
        limiter.checked("a")
    assert limiter._checks == {}
    limiter.check("a", lambda: False)
    assert limiter._checks == {}


def test_refusals_for_line_ends_are_counted_by_network() -> None:
    limiter = make_limiter(Caps(10, 10, 1000))
    assert [limiter.count_bare("a"), limiter.count_bare("a"), limiter.count_bare("b")] == [1, 2, 1]


@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        (LOCAL, LOCAL),
        ("1:2", "1:2"),
    ],
)
def test_networks(client: str, network: str) -> None:
    assert network_of(client) == network


def test_a_list_of_networks() -> None:
    networks = Networks(["192.0.2.0/24", "2001:db8::/32"])
    assert networks
    assert "192.0.2.255" in networks
    assert "2001:db8::1%eth0" in networks
    for other in ("192.0.3.0", "2001:db9::1", LOCAL, ""):
        assert other not in networks
    assert not Networks([])


@pytest.mark.parametrize(("client", "near"), [("127.0.0.9", True), ("::1", True), (LOCAL, True)])
def test_what_is_near(client: str, near: bool) -> None:
    assert is_near(client) is near
    assert not is_near("192.0.2.127")


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        (("192.0.2.1", 40000), "192.0.2.1"),
        (("::ffff:192.0.2.1", 40000, 0, 0), "192.0.2.1"),
        (("2001:db8::1", 40000, 0, 0), "2001:db8::1"),
        ("", LOCAL),
    ],
)
def test_a_client_of_a_socket_for_both_families_is_the_ipv4_client_that_it_is(peer, name) -> None:
    """Otherwise all of IPv4 would be one network, with one cap."""
    assert peer_name(peer) == name
