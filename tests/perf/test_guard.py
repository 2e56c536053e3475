"""The guard: what it reports, what it compares with, and that its step is a real one."""

import json

import pytest

from perf import guard, guard_subjects

BEFORE = {"message": 200_000.0, "poll": 300_000.0}


def test_three_per_cent_more_is_reported_and_noise_is_not():
    _, worse = guard.compare({"message": 206_000, "poll": 301_000}, BEFORE)
    assert worse == ["message"]


def test_less_and_a_new_subject_are_not_reported():
    text, worse = guard.compare({"message": 150_000, "encode": 10_000}, BEFORE)
    assert worse == []
    assert "-25.00%" in text


def test_the_last_line_of_the_same_interpreter_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "HISTORY", tmp_path / "guard.jsonl")
    assert guard.last_line() is None
    guard.record({"message": 1}, "first")
    guard.record({"message": 2}, "second")
    line = {"python": "2.7", "machine": "pdp11", "instructions": {"message": 3}}
    with guard.HISTORY.open("a") as file:
        file.write(json.dumps(line) + "\n")
    last = guard.last_line()
    assert last is not None
    assert (last["note"], last["instructions"]) == ("second", {"message": 2})


def test_the_step_is_three_per_cent_of_what_is_counted():
    more = [guard_subjects.rounds_of(rounds, 3.0) for rounds in (guard.FEW, guard.MANY)]
    assert more[1] - more[0] == pytest.approx(1.03 * (guard.MANY - guard.FEW))


@pytest.mark.parametrize("subject", ["smtp machine", "encode"])
def test_a_subject_does_its_work_in_every_round(subject):
    one_round = guard_subjects.SUBJECTS[subject]()
    for _ in range(3):
        one_round()
