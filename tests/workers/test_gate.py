"""What one client network may have: connections, messages, failed logins, checks."""

from __future__ import annotations

import pytest

from metad import limits
from metad.config import Limits
from metad.workers.gate import Caps, Gate, share
from metad.workers.networks import LOCAL, Networks, is_near, network_of


def test_a_network_has_its_cap_and_others_have_theirs() -> None:
    gate = Gate(Caps(100, 3))
    assert [gate.enter("a") for _ in range(4)] == [True, True, True, False]
    assert gate.enter("b")
    gate.leave("a")
    assert gate.enter("a")
    assert not gate.enter("a")


def test_all_together_have_a_cap_too() -> None:
    gate = Gate(Caps(5, 3))
    assert [gate.enter(str(number)) for number in range(6)] == [True] * 5 + [False]
    gate.leave("0")
    assert gate.enter("6")
    assert gate.connections == 5


def test_a_unix_socket_has_no_network() -> None:
    gate = Gate(Caps(5, 3))
    assert [gate.enter(LOCAL) for _ in range(6)] == [True] * 5 + [False]


def test_networks_without_connections_are_forgotten() -> None:
    gate = Gate(Caps(100, 3))
    for number in range(1000):
        assert gate.enter(str(number))
        gate.leave(str(number))
    assert gate.connections == 0
    assert gate._open == {}


@pytest.mark.parametrize(
    ("workers", "expected"),
    [(1, Caps(10_000, 1_000)), (2, Caps(6_250, 625)), (4, Caps(3_125, 313))],
)
def test_workers_share_the_caps_and_no_client_is_refused_below_them(workers, expected) -> None:
    assert share(Limits(), workers) == expected
    assert expected.of_network * workers >= Limits().network_connections


def test_it_is_crowded_above_four_fifths() -> None:
    gate = Gate(Caps(10, 10))
    crowded = []
    for _ in range(10):
        gate.enter("a")
        crowded.append(gate.is_crowded)
    assert crowded == [False] * 8 + [True, True]


def test_slow_senders_have_an_hour_and_in_a_crowd_a_minute_and_a_rate() -> None:
    gate = Gate(Caps(10, 10))
    assert not gate.is_too_slow(0, 3600)
    assert gate.is_too_slow(0, 3601)
    assert not gate.is_too_slow(500_000, 4600)
    for _ in range(10):
        gate.enter("a")
    assert not gate.is_too_slow(0, 60)
    assert gate.is_too_slow(0, 61)
    # 30 MiB at 500 octets per second are never cut.
    assert not gate.is_too_slow(30 << 20, (30 << 20) / limits.MIN_DATA_RATE)


def test_messages_are_counted_by_the_minute() -> None:
    gate = Gate(Caps(10, 10), message_rate=2)
    assert [gate.may_send("a", 0), gate.may_send("a", 1), gate.may_send("a", 59)] == [
        True,
        True,
        False,
    ]
    assert gate.may_send("b", 59)
    assert gate.may_send("a", 60)
    assert [gate.may_send(LOCAL, 0) for _ in range(5)] == [True] * 5


def test_the_answer_to_a_failed_login_waits_longer_each_time_and_forgets() -> None:
    gate = Gate(Caps(10, 10))
    assert [gate.failure_delay("a", 0) for _ in range(7)] == [1, 2, 4, 8, 15, 15, 15]
    assert gate.failure_delay("b", 0) == 1
    assert gate.failure_delay("a", limits.LOGIN_FAILURE_MEMORY + 1) == 1
    for _ in range(5000):
        delay = gate.failure_delay("c", 0)
    assert delay == limits.MAX_LOGIN_FAILURE_DELAY


def test_what_is_remembered_of_networks_is_bounded() -> None:
    gate = Gate(Caps(10, 10))
    for number in range(limits.NETWORKS_REMEMBERED + 100):
        gate.failure_delay(str(number), 0)
    assert len(gate._past) == limits.NETWORKS_REMEMBERED


def test_few_checks_of_a_network_run_at_once_and_the_others_wait_in_order() -> None:
    gate = Gate(Caps(10, 10))
    begun: list[int] = []
    for number in range(limits.LOGIN_CHECKS + 3):
        gate.check("a", lambda number=number: begun.append(number))
    gate.check("b", lambda: begun.append(99))
    first = list(range(limits.LOGIN_CHECKS))
    assert begun == [*first, 99]
    for _ in range(limits.LOGIN_CHECKS + 3):
        gate.checked("a")
    gate.checked("b")
    assert begun == [*first, 99, *range(limits.LOGIN_CHECKS, limits.LOGIN_CHECKS + 3)]
    assert gate._checks == {}


def test_refusals_for_line_ends_are_counted_by_network() -> None:
    gate = Gate(Caps(10, 10))
    assert [gate.count_bare("a"), gate.count_bare("a"), gate.count_bare("b")] == [1, 2, 1]


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
