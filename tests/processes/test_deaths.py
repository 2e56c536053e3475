"""kill -9 of each kind of process under load: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.live import NAMES, LiveHub, collector, index_locked, recovery, strike
from tests.support.load import KILLS, Load, show
from tests.support.sizes import reached, sized


@pytest.fixture
def live():
    with LiveHub() as hub:
        yield hub


@pytest.mark.long
def test_a_hundred_kills_under_load_lose_and_double_nothing(live):
    """kill -9 of workers, alone and together, of the collector and of the master."""
    times: dict[str, list[float]] = {"a worker": [], "all workers": [], "the collector": []}
    times["the master, and a start"] = []
    kills = 0
    with Load(live, NAMES, readers=3) as load:
        while kills < sized(9, 100):
            for _ in range(4):
                kills += cycle(live, load, times)
            load.wait_for(20)
            with timed(times["the master, and a start"]):
                live.kill_master()
                live.start()
            kills += 1
    load.check()
    live.kill()
    shutil.rmtree(live.data / "index")
    live.start()
    load.check()
    reached(KILLS, kills)
    for victim, taken in times.items():
        show(victim, taken)


def cycle(live: LiveHub, load: Load, times: dict[str, list[float]]) -> int:
    """Each kind of child once, and a reload, which resets the back-off of the slots."""
    pids = live.worker_pids()
    load.wait_for(20)
    with timed(times["a worker"]):
        strike(pids[0])
        live.whole(pids[0])
    load.wait_for(20)
    victim = collector(live.until(collector, "a collector"))
    with timed(times["the collector"]):
        strike(victim)
        live.until(lambda facts: collector(facts) not in (0, victim), "the next collector")
    live.reload()
    live.until(lambda facts: len(facts["workers"]) == 2, "the old generation gone")
    pids = live.whole(*pids)["workers"]
    load.wait_for(20)
    with timed(times["all workers"]):
        for one in pids:
            strike(one["pid"])
        live.whole(*(one["pid"] for one in pids))
    return 2 + len(pids)


@contextmanager
def timed(times: list[float]) -> Iterator[None]:
    struck = time.monotonic()
    yield
    times.append(time.monotonic() - struck)


def test_with_the_index_gone_after_a_kill_all_is_there(live):
    with Load(live, NAMES) as load:
        load.wait_for(60)
        strike(live.worker_pids()[0])
        load.wait_for(30)
        live.kill()
    shutil.rmtree(live.data / "index")
    live.start()
    load.check()


def test_a_killed_recovery_is_tried_again_until_the_mail_is_there(live):
    with Load(live, NAMES) as load:
        load.wait_for(60)
        victim = live.worker_pids()[0]
        with index_locked(live.data):
            strike(victim)
            facts = live.until(recovery, "a recovery that waits")
            strike(recovery(facts))
            again = live.until(recovery, "the next recovery")
            assert recovery(again) != recovery(facts)
        live.whole(victim)
    load.check()
    assert "failed: killed by SIGKILL" in live.log.read_text()


def test_a_stopped_recovery_is_killed_and_tried_again():
    with LiveHub(heartbeat=1) as live:
        with Load(live, NAMES) as load:
            load.wait_for(30)
            victim = live.worker_pids()[0]
            with index_locked(live.data):
                strike(victim)
                first = recovery(live.until(recovery, "a recovery that waits"))
                os.kill(first, signal.SIGSTOP)
                live.until(lambda facts: recovery(facts) not in (0, first), "another recovery")
            live.whole(victim)
        load.check()


def test_a_fork_that_fails_is_tried_again(live):
    """As with a full process table: the master continues, and the worker starts when possible."""
    master, victim = live.process.pid, live.worker_pids()[0]
    limits = Path(f"/proc/{master}/limits").read_text()
    hard = re.search(r"^Max processes +\S+ +(\S+)", limits, re.M)[1]
    most = resource.RLIM_INFINITY if hard == "unlimited" else int(hard)
    limit_processes(master, (1, most))
    try:
        strike(victim)
        live.until(lambda _: "cannot fork" in live.log.read_text(), "a fork that fails")
        assert live.facts()["state"] == "serving"
    finally:
        limit_processes(master, (most, most))
    live.whole(victim)


def test_a_fork_that_fails_at_the_end_costs_the_next_start_a_recovery_and_no_mail(live):
    with Load(live, NAMES) as load:
        load.wait_for(20)
    master = live.process.pid
    limit_processes(master, (1, 1))
    assert live.stop() == 75
    assert "cannot record that the index is clean: cannot fork" in live.log.read_text()
    live.start()
    load.check()


def limit_processes(pid: int, limit: tuple[int, int]) -> None:
    """As the user of that process, the only one permitted."""
    status = Path(f"/proc/{pid}/status").read_text()
    uid, gid = (int(status.partition(key)[2].split()[0]) for key in ("Uid:", "Gid:"))
    child = os.fork()
    if child == 0:
        try:
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            resource.prlimit(pid, resource.RLIMIT_NPROC, limit)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_worker_that_cannot_begin_again_is_tried_until_it_can(sabotaged):
    with sabotaged() as live:
        with Load(live, NAMES) as load:
            load.wait_for(20)
            victim, other = live.worker_pids()
            (live.data / "boot").touch()
            strike(victim)
            live.until(
                lambda _: live.log.read_text().count("cannot start): sabotage: no room") > 1,
                "two successors that cannot start",
            )
            assert live.worker_pids()[1] == other
            (live.data / "boot").unlink()
            live.whole(victim)
            load.wait_for(20)
        load.check()


def test_workers_that_die_again_and_again_come_later_each_time(live):
    """A crash loop must not consume the machine: the fifth death in a row delays over a second."""
    gaps = []
    for _ in range(5):
        victim = live.until(lambda facts: facts["workers"][0]["pid"], "a worker")
        pid = victim["workers"][0]["pid"]
        struck = time.monotonic()
        strike(pid)
        old = (0, pid)
        live.until(lambda facts, old=old: facts["workers"][0]["pid"] not in old, "its successor")
        gaps.append(time.monotonic() - struck)
    assert gaps[-1] > 1.0 > gaps[0]
    assert gaps[-1] > gaps[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGABRT])
def test_a_collector_that_ends_is_replaced(live, number):
    with Load(live, NAMES) as load:
        load.wait_for(20)
        victim = collector(live.until(collector, "a collector"))
        os.kill(victim, number)
        live.until(lambda facts: collector(facts) not in (0, victim), "the next collector")
        load.wait_for(20)
    load.check()
