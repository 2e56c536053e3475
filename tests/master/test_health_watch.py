"""The master logs the begin and end of a problem, and knows since when the state lasts."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from metad.master.health_watch import HealthWatch
from metad.monitor.health import DEGRADED, SERVING, Report
from metad.monitor.problem import Problem


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A watch whose hub has the problems in `watch.found`."""
    lines: list[str] = []
    hub = cast(Any, SimpleNamespace(config=None, area=None))
    made = HealthWatch(hub, list, lines.append)
    state = SimpleNamespace(watch=made, lines=lines, found=[], looks=0)

    def look(facts: object) -> Report:
        state.looks += 1
        return Report(DEGRADED if state.found else SERVING, state.found)

    monkeypatch.setattr("metad.monitor.facts.take", lambda *_: None)
    monkeypatch.setattr(made._health, "look", look)
    return state


def test_it_looks_every_few_seconds(watch: Any) -> None:
    begin = time.monotonic()
    watch.watch.look(begin, "")
    watch.watch.look(begin + 1, "")
    assert watch.looks == 1
    watch.watch.look(begin + 100, "recovering")
    assert watch.looks == 1
    watch.watch.look(begin + 100, "")
    assert watch.looks == 2


def test_a_problem_is_logged_when_it_begins_and_when_it_ends(watch: Any) -> None:
    watch.found = [(Problem("no space", "free some"), 5)]
    watch.watch.now()
    watch.watch.now()
    watch.found = []
    watch.watch.now()
    watch.watch.now()
    assert watch.lines == ["warning: no space (to do: free some)", "no longer: no space"]


def test_a_state_has_the_time_of_its_first_problem(watch: Any) -> None:
    began = watch.watch.facts("")["since"]
    assert watch.watch.facts("")["since"] == began > 1_000_000
    watch.found = [(Problem("a", "x"), 700), (Problem("b", "y"), 500)]
    facts = watch.watch.facts("")
    assert (facts["state"], facts["since"]) == (DEGRADED, 500)
    watch.found = watch.found[:1]
    assert watch.watch.facts("")["since"] == 500
    assert watch.watch.facts("reloading")["state"] == "reloading"


def test_a_look_that_fails_is_logged_and_ends_nothing(
    watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(facts: object) -> Report:
        raise ValueError("77 is no state")

    monkeypatch.setattr(watch.watch._health, "look", fail)
    begin = time.monotonic()
    watch.watch.look(begin, "")
    watch.watch.look(begin + 1, "")
    assert len(watch.lines) == 1
    assert "77 is no state" in watch.lines[0]
    with pytest.raises(ValueError, match="77"):  # a command gets the answer
        watch.watch.facts("")
