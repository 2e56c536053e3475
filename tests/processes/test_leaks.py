"""Round after round of deaths and reloads: what the master holds stays what it was."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import posix_ipc
from clients import deliver, message
from live import LiveHub, strike

from metad.shm import PROCESSES, Cell, SharedArea

MOST_GROWTH = 1024  # KiB of resident memory, over all rounds


class Held(NamedTuple):
    """What must not grow."""

    descriptors: int
    threads: int
    processes: int
    rows: int
    shared: int
    semaphore: int


def test_deaths_and_reloads_leak_nothing(scale):
    """100 rounds in soak (METAD_TEST_SCALE=25)."""
    with LiveHub() as live:
        for _ in range(3):  # what Python allocates once
            one_round(live)
        before, resident = held(live), memory(live.process.pid)
        for _ in range(round(4 * scale)):
            one_round(live)
        assert held(live) == before
        assert memory(live.process.pid) - resident < MOST_GROWTH


def one_round(live: LiveHub) -> None:
    facts = live.whole()
    (first, second) = (one["pid"] for one in facts["workers"])
    strike(first)
    live.whole(first)
    live.run("reload")
    live.until(lambda facts: len(facts["workers"]) == 2, "the old generation gone")
    live.whole(first, second)
    deliver(live, message(), "alice")


def held(live: LiveHub) -> Held:
    master = live.process.pid
    name = f"/{next(path.name for path in live.shared if not path.name.startswith('sem.'))}"
    status = Path(f"/proc/{master}/status").read_text()
    return Held(
        descriptors=len(os.listdir(f"/proc/{master}/fd")),
        threads=int(re.search(r"Threads:\t(\d+)", status)[1]),
        processes=len(live.pids()),
        rows=rows_in_use(name),
        shared=len([path for path in live.shared if path.exists()]),
        semaphore=semaphore_value(name),
    )


def rows_in_use(name: str) -> int:
    area = SharedArea.attach(name)
    try:
        return sum(1 for number in range(PROCESSES) if area.process(number)[Cell.PID])
    finally:
        area.cells.release()
        area._mapped.close()


def semaphore_value(name: str) -> int:
    semaphore = posix_ipc.Semaphore(name)
    try:
        return semaphore.value
    finally:
        semaphore.close()


def memory(pid: int) -> int:
    """Resident KiB that are the process's own."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1])
