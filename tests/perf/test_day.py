"""A day of a hub: what its plans hold, when the climb ends, what the tables say."""

import argparse
import statistics

import pytest

from perf import day

SETTINGS = {"users": 200, "skew": 1.0, "polls": 0.5, "burst_every": 100, "seed": 3}


def plan(text: str) -> list[tuple[float, int, str]]:
    lines = [line.split() for line in text.splitlines()]
    return [(int(due) / 1e6, int(value), user) for due, value, user in lines]


@pytest.fixture
def model() -> day.Day:
    return day.Day(argparse.Namespace(**SETTINGS))


def test_mails_come_at_their_rate_with_the_sizes_of_the_traces(model):
    mails = plan(model.mails(100, 200))
    assert len(mails) == pytest.approx(20_000, rel=0.1)
    assert [due for due, _, _ in mails] == sorted(due for due, _, _ in mails)
    sizes = [size for _, size, _ in mails]
    assert statistics.mean(sizes) == pytest.approx(day.MEAN, rel=0.15)
    assert statistics.median(sizes) < day.MEAN / 1.5  # a long tail
    assert min(sizes) >= day.SMALLEST
    assert max(sizes) > 100_000


def test_few_users_get_most_mail_but_all_poll_alike(model):
    mails = [user for _, _, user in plan(model.mails(100, 200))]
    polls = [user for _, _, user in plan(model.polls(100, 200))]
    first = model.users[0]
    assert mails.count(first) > 20 * mails.count(model.users[-1])
    assert polls.count(first) == pytest.approx(len(polls) / len(model.users), rel=0.5)


def test_half_of_the_users_leave_their_mail(model):
    kinds = {kind for _, kind, _ in plan(model.polls(50, 20))}
    assert kinds == {day.FETCH, day.DRAIN}


def test_two_seeds_are_two_days():
    days = [day.Day(argparse.Namespace(**SETTINGS | {"seed": seed})) for seed in (1, 1, 2)]
    one, again, other = [each.mails(20, 5) for each in days]
    assert one == again != other


def step(rate: float, p99: float) -> dict:
    latencies = {"p50": 1.0, "p99": p99, "p99.9": p99}
    return {
        "rate": rate, "mails": 10, "polls": 5, "mail_ms": latencies, "poll_ms": latencies,
        "hub_busy": 0.5, "load_busy": 0.1,
    }  # fmt: skip


def test_the_climb_ends_at_the_second_miss_in_a_row():
    late = {100: 5.0, 200: 150.0, 400: 20.0, 800: 150.0, 1600: 900.0, 3200: 900.0}
    steps = day.climb(lambda rate: step(rate, late[int(rate)]), [float(rate) for rate in late])
    assert [one["rate"] for one in steps] == [100, 200, 400, 800, 1600]
    assert day.sustained(steps) == 400


def test_the_tables_show_both_days():
    machine = {
        "cpu": "a processor", "cores": 2, "kernel": "6", "filesystem": "ext4", "python": "3",
        "date": "2026-11-28", "load": [0.1], "command": ["sh", "tools/perf", "day"],
    }  # fmt: skip
    facts = {"machine": machine} | {
        name: {"steps": [step(400, p99)], "sustained": day.sustained([step(400, p99)])}
        for name, p99 in (("off", 10.0), ("on", 120.0))
    }
    text = day.tables(facts)
    without, _, with_one = text.partition(day.TITLES["on"])
    assert "400 mails/s" in without
    assert ": 0 mails/s" in with_one
