"""A message that arrived whole counts until it is committed; with little memory it goes to a
file."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from metad.budget import Budget
from metad.layers.base import Envelope, Recipient
from metad.layers.logs import LogLayer
from metad.limits import CHUNK_MEMORY
from metad.store.commit.committer import Committer
from metad.store.log.encode import Append
from metad.system.osio import Osio

ENVELOPE = Envelope(bytes(16), "local", "c", "", (Recipient(2, "a@x.org"),), b"T: r\r\n", 600, 0)
NO_FEED = SimpleNamespace(lagging=[], answered=[])
NO_CHAIN = SimpleNamespace(has_space=True, writer=None, close=lambda: None)


def bench(path: Path, budget: Budget) -> tuple[LogLayer, deque[Append]]:
    layer = LogLayer.__new__(LogLayer)
    layer.budget = budget
    layer.osio = Osio()
    layer.store = SimpleNamespace(spool=str(path))  # type: ignore[assignment]
    layer.source = SimpleNamespace(has_space=True)  # type: ignore[assignment]
    committer = Committer(SimpleNamespace(), NO_CHAIN, NO_FEED, budget)  # type: ignore[arg-type]
    committer._busy = True  # nothing is committed; `_waiting` has the submitted records
    layer.committer = committer
    return layer, committer._waiting


def test_a_message_that_came_whole_counts_until_it_is_committed(tmp_path: Path) -> None:
    budget = Budget(10_000)
    layer, submitted = bench(tmp_path, budget)
    done: list[Any] = []
    for _ in range(10):
        layer.deliver(ENVELOPE, b"x" * 900, done.append)
    # Half of the budget holds five of them, all of it ten: small ones use the other half too.
    assert budget.used <= budget.limit
    assert budget.used >= 9 * (900 + CHUNK_MEMORY)
    layer.deliver(ENVELOPE, b"y" * 900, done.append)
    assert budget.used <= budget.limit
    assert b"".join(submitted[-1].spooled.chunks()) == b"T: r\r\n" + b"y" * 900
    everything = list(submitted)
    submitted.clear()
    layer.committer._answer(everything, None)
    layer.committer.stop()
    assert done == [None] * 11
    assert budget.used == 0
