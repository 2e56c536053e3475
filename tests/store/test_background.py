"""A thread for jobs outlives a job that raises."""

from __future__ import annotations

import threading

import pytest

from metad.store.background import JobThread


def test_a_job_that_raises_costs_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    done: list[int] = []

    def fail() -> None:
        raise ValueError("a bug")

    thread = JobThread("reads")
    thread.put(fail)
    thread.put(lambda: done.append(1))
    thread.stop()
    assert done == [1]
    assert [(repr(one.exc_value), one.thread and one.thread.name) for one in told] == [
        ("ValueError('a bug')", "reads")
    ]
