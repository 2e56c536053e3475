"""Many rounds of deaths and reloads: the master's resources stay constant."""

from __future__ import annotations

import json
import os
import re
import select
from pathlib import Path
from typing import NamedTuple

import posix_ipc
import pytest

from metad import nanny
from metad.control_client import Client
from metad.system.privileges import Identity
from metad.system.shared_memory import PROCESSES, Cell, SharedArea
from tests.support.clients import deliver, message
from tests.support.live import LOOK_SECONDS, LiveHub, collector, strike
from tests.support.sizes import reached, sized

MOST_GROWTH = 1024  # KiB of resident memory, over all rounds


class Held(NamedTuple):
    """What must not grow."""

    descriptors: int
    threads: int
    processes: int
    rows: int
    shared: int
    semaphore: int


@pytest.mark.long
def test_a_hundred_deaths_and_reloads_leak_nothing():
    """A reload every second round: it resets every slot's back-off, so that the next deaths cause
    no delay."""
    with LiveHub() as live:
        for number in range(4):  # allocated once by Python
            one_round(live, number)
        before, resident = held(live), memory(live.process.pid)
        for number in range(rounds := sized(5, 100)):
            one_round(live, number)
        reached("row 11, deaths and reloads without a leak: rounds", rounds)
        assert held(live) == before
        assert memory(live.process.pid) - resident < MOST_GROWTH


def test_a_worker_shares_what_the_master_imported():
    """Regression: its first garbage collection copied most of it, and took most of its start
    time."""
    with LiveHub() as live:
        for pid in live.worker_pids():
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            shared, own = (
                int(re.search(rf"{key}: +(\d+)", text)[1])
                for key in ("Shared_Dirty", "Private_Dirty")
            )
            assert shared > 2 * own


def one_round(live: LiveHub, number: int) -> None:
    """kill -9 of one worker; every second time a reload, every tenth the collector's death too."""
    pids = live.worker_pids()
    strike(pids[number % 2])
    if number % 10 == 0:
        strike(collector(live.until(collector, "a collector")))
    live.whole(pids[number % 2])
    deliver(live, message(), "alice")
    if number % 2:
        live.reload()
        live.until(lambda facts: len(facts["workers"]) == 2, "the old generation gone")
        live.whole(*pids)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a nanny")
def test_masters_that_die_again_and_again_leak_nothing_of_their_nanny(tmp_path, monkeypatch):
    """The nanny itself, with masters that only record its resources, and end."""
    monkeypatch.setattr(nanny, "LONG_LIFE_SECONDS", 0.0)  # so that none waits for longer and longer
    noted = tmp_path / "noted"
    masters = sized(12, 102)
    script = (
        f"echo $(ls /proc/$PPID/fd | wc -l) $(grep RssAnon: /proc/$PPID/status) >> {noted};"
        f" exit $(( $(wc -l < {noted}) < {masters} ))"
    )
    root = Identity("root", 0, 0, (0,))
    order = nanny.Spec(root, (), str(tmp_path), 2, [("127.0.0.1", 0)], ["/bin/sh", "-c", script])
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    pid = os.fork()
    if pid == 0:
        os.dup2(log, 2)
        os._exit(nanny.main(json.dumps(order)))
    os.close(log)
    assert os.waitpid(pid, 0)[1] == 0
    lines = [line.split() for line in noted.read_text().splitlines()]
    assert len(lines) == masters
    assert lines[-1][0] == lines[1][0]
    assert int(lines[-1][2]) - int(lines[1][2]) < MOST_GROWTH
    reached("row 11, masters that died below one nanny", masters)


def held(live: LiveHub) -> Held:
    master = live.process.pid
    name = f"/{next(path.name for path in live.shared if not path.name.startswith('sem.'))}"
    status = Path(f"/proc/{master}/status").read_text()
    live.until(collector, "a collector")
    descriptors = []
    with Client(live.data) as line:
        for _ in range(10):  # connections just closed by others disappear; a leak stays
            line.request("status")
            select.select([], [], [], LOOK_SECONDS)
            descriptors.append(len(os.listdir(f"/proc/{master}/fd")))
    return Held(
        descriptors=min(descriptors),
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
