"""The screen of metad top, from two samples of a hub."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from metad.cli import top
from metad.system.histograms import HISTOGRAMS

MIB = 1 << 20


def log(number: int, **more: Any) -> dict[str, Any]:
    return {
        "number": number, "state": "sealed", "generation": 1, "owner": "", "tail": 8 * MIB,
        "live": 4 * MIB, "messages": 9, **more,
    }  # fmt: skip


@pytest.fixture
def before() -> dict[str, Any]:
    empty = {one.name: [[0] * (len(one.bounds) + 1), 0] for one in HISTOGRAMS}
    return {
        "version": "1", "state": "serving", "since": 0, "problems": [], "uptime": 3700.0,
        "now": {"smtp_open": 3, "pop3_open": 1}, "workers": 2, "disk_free": 5 << 30,
        "collector": {"bytes_moved": 0, "logs_freed": 4, "expired": 2, "left": 1},
        "log_size": 8 * MIB, "free_logs": 1, "hidden_logs": 0, "logs": [log(7)], "at": 100.0,
        "totals": dict.fromkeys(top._RATES, 0), "histograms": empty,
    }  # fmt: skip


@pytest.fixture
def now(before: dict[str, Any]) -> dict[str, Any]:
    """Ten seconds later."""
    found = copy.deepcopy(before) | {"at": 110.0}
    found["totals"] |= {"messages": 50, "bytes": 10 * MIB, "retrieved": 20, "refused": 5}
    found["collector"]["bytes_moved"] = 20 * MIB
    found["histograms"]["commit_seconds"][0][2] = 99
    found["histograms"]["commit_seconds"][0][5] = 1
    return found


def test_rates_and_latencies_are_those_between_the_looks(before, now):
    facts = top.figures(before, now)
    assert facts["rates"]["messages"] == 5.0
    assert facts["rates"]["bytes"] == MIB
    assert facts["rates"]["logins"] == 0
    assert facts["moved_per_second"] == 2 * MIB
    assert facts["latencies"]["commit_seconds"] == {"half": 0.0005, "most": 0.0005}
    assert facts["latencies"]["sync_seconds"] == {"half": None, "most": None}


def test_a_hub_that_restarted_meanwhile_counts_as_zero(before, now):
    facts = top.figures(now | {"at": 90.0}, before)
    assert set(facts["rates"].values()) == {0}
    assert facts["moved_per_second"] == 0


def test_the_screen(before, now):
    lines = top.screen(top.figures(before, now), 100)
    assert lines[0] == "serving, up 1 h 1 min 40 s, metad 1, 2 workers, 5.0 GiB free"
    text = "\n".join(lines)
    assert "smtp 3" in text
    assert "mail in    5.0 messages/s   1.0 MiB/s   refused 0.5/s" in text
    assert "commit     half ≤ 0.5 ms, 99 % ≤ 0.5 ms" in text
    assert "collector  2.0 MiB/s moved   freed 4 logs   expired 2   to do 1" in text
    assert lines[-1] == f"     7 sealed     g1 [{'#' * 16}{'-' * 16}]  50 % live"


def test_problems_come_first_and_all_fits(before, now):
    now["problems"] = [{"problem": "no space " * 20, "since": 1, "remedy": "free some"}]
    now["logs"] = [log(number, owner="worker 0" * 5) for number in range(50)]
    now["hidden_logs"] = 7
    facts = top.figures(before, now)
    for height in (24, 60, 1000):
        lines = top.screen(facts, height)
        assert len(lines) <= height
        assert max(map(len, lines)) <= top.WIDTH
    assert top.screen(facts, 24)[1].startswith("problem: no space")
    assert top.screen(facts, 24)[-1] == f"{57 - (24 - 8 - 1 - 1)} more logs"
    assert top.screen(facts, 1000)[-1] == "7 more logs"


@pytest.mark.parametrize(
    ("live", "tail", "bar"),
    [
        (0, 0, "." * 32),
        (8 * MIB, 8 * MIB, "#" * 32),
        (0, 4 * MIB, "-" * 16 + "." * 16),
        (9 * MIB // 2, 4 * MIB, "#" * 18 + "." * 14),
    ],
)
def test_a_bar_has_always_its_width(live, tail, bar):
    assert f"[{bar}]" in top._bar(log(1, live=live, tail=tail), 8 * MIB)


def test_sizes_for_people():
    assert [top._size(one) for one in (0, 1023, 1024, 5 << 40)] == [
        "0 B", "1023 B", "1.0 KiB", "5.0 TiB",
    ]  # fmt: skip


def test_colours_mark_the_bars(before, now):
    text = top._coloured(top.screen(top.figures(before, now), 50))
    styles = {str(span.style) for span in text.spans}
    assert {"green", "red"} <= styles
