"""The soak of the simulator continues where it stopped, and keeps every failed seed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.sim import soak
from tests.sim.kinds import KINDS
from tests.sim.plan import Op, Plan


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def run(state: Path, *more: str, count: int = 5) -> int:
    return soak.main(["7", str(count), "--state", str(state), *more])


def test_a_soak_goes_on_where_it_stopped(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[int] = []

    def batch(kind: str, seeds: range) -> list[tuple[int, str | None, int]]:
        tried.extend(seeds)
        return [(seed, None, 10) for seed in seeds]

    monkeypatch.setattr(soak, "BATCH", 2)
    monkeypatch.setattr(soak, "run_batch", batch)
    assert run(state, "--minutes", "0") == 0
    assert tried == []
    assert run(state, "--shard", "1/2") == 0
    assert run(state, "--shard", "1/2") == 0  # nothing is left
    assert tried == [8, 10]
    found = json.loads(state.read_text())
    assert (found["place"], found["steps"], sum(found["commits"].values())) == (2, 20, 2)
    assert "2 of 2 seeds, 0 failed, 20 switch points" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is about hub, 5 seeds from 7, 1/2"):
        run(state, "--shard", "0/2")


def test_a_seed_that_fails_is_shrunk_and_kept(
    state: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    good = Plan(1, (Op("put", gap=-1),))
    bad = Plan(1, (Op("put", gap=-1), Op("no_such_operation")))
    monkeypatch.setitem(KINDS, "hub", lambda seed: bad if seed == 8 else good)
    assert run(state, count=2) == 1
    assert run(state, count=2) == 1  # it stays failed
    (reason,) = json.loads(state.read_text())["failed"].values()
    assert "no_such_operation" in reason
    shown = capfd.readouterr().out
    assert "seed 8: " in shown
    assert "1. Op(kind='no_such_operation'" in shown
    assert "2. " not in shown


def test_a_seed_that_ends_the_interpreter_costs_itself_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def outcome(kind: str, seed: int) -> tuple[str | None, int]:
        if seed == 2:
            os._exit(9)
        return None, 1

    monkeypatch.setattr(soak, "_outcome", outcome)
    found = {seed: reason for seed, reason, _ in soak.run_batch("hub", range(1, 5))}
    assert found == {1: None, 2: "the process ended", 3: None, 4: None}


def test_the_seeds_of_the_shards_are_all_seeds() -> None:
    shards = [soak.Progress(3, 10, f"{number}/3").seeds() for number in range(3)]
    assert sorted(seed for shard in shards for seed in shard) == list(range(3, 13))
    assert all(make_plan(3) == make_plan(3) for make_plan in KINDS.values())


def test_a_cluster_is_soaked_as_a_hub_is(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(state, "--kind", "two", count=1) == 0
    assert "two: 1 of 1 seeds, 0 failed" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is about two, 1 seeds from 7"):
        run(state, "--kind", "three", count=1)
