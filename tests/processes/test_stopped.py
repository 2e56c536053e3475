"""SIGSTOP of each kind of process: hung ones are replaced, no other is killed."""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import pytest

from tests.support.clients import bodies, deliver, message, together
from tests.support.live import NAMES, LiveHub, collector, index_locked, wait_gone
from tests.support.load import Load
from tests.support.sizes import noted


@pytest.fixture
def live():
    with LiveHub(heartbeat=1) as hub:
        yield hub


def test_a_stopped_worker_is_killed_and_replaced(live):
    with Load(live, NAMES) as load:
        load.wait_for(30)
        victim = live.worker_pids()[0]
        struck = time.monotonic()
        os.kill(victim, signal.SIGSTOP)
        wait_gone(victim)
        live.whole(victim)
        took = time.monotonic() - struck
        load.wait_for(30)
    load.check()
    assert f"(pid {victim}) is stopped" in live.log.read_text()
    noted("back in service after SIGSTOP of a worker, heartbeat 1 s", f"{took:.2f} s")


def test_a_stopped_collector_is_killed_and_replaced(live):
    with Load(live, NAMES) as load:
        load.wait_for(20)
        victim = collector(live.until(collector, "a collector"))
        os.kill(victim, signal.SIGSTOP)
        live.until(lambda facts: collector(facts) not in (0, victim), "the next collector")
        load.wait_for(20)
    load.check()


def test_a_worker_that_hangs_is_aborted_with_its_trace(sabotaged):
    """It runs, but its loop hangs: the log shows what it was doing."""
    with sabotaged(heartbeat=1) as live:
        victim = live.worker_pids()[1]
        (live.data / "hang").write_text(str(victim))
        live.whole(victim)
        log = live.log.read_text()
    assert f"(pid {victim}) hangs: killing it" in log
    assert re.search(r"died: killed by SIGABRT", log)
    assert re.search(r'sitecustomize.py", line \d+ in tick', log)


def test_a_stopped_and_continued_master_kills_no_process(live):
    """It has not seen a heartbeat for longer than the limit, because it could not look."""
    pids = live.worker_pids()
    with Load(live, NAMES) as load:
        os.kill(live.process.pid, signal.SIGSTOP)
        started = time.monotonic()
        while time.monotonic() - started < 2.5:
            load.wait_for(10)  # the workers continue
        os.kill(live.process.pid, signal.SIGCONT)
        load.wait_for(30)
        facts = live.facts()
    assert [one["pid"] for one in facts["workers"]] == pids
    assert load.failures == []
    load.check()


def test_workers_that_wait_for_the_index_are_not_hung(live):
    """Another process holds it longer than the limit: none is killed, and the mail arrives."""
    pids = live.worker_pids()
    sender = threading.Thread(target=deliver, args=(live, message(), "alice"))
    with index_locked(live.data):
        sender.start()
        started = time.monotonic()
        while time.monotonic() - started < 2.0:
            assert live.worker_pids() == pids
    together([sender])
    assert live.worker_pids() == pids
    assert len(bodies(live, "alice")) == 1


def test_a_stopped_holder_of_the_index_is_killed_and_who_waited_is_not(live):
    """Stopped between two of many commits, sooner or later while it holds the lock; whenever it
    is, only the stopped one goes."""
    with Load(live, NAMES) as load:
        load.wait_for(20)
        victim, other = live.worker_pids()
        os.kill(victim, signal.SIGSTOP)
        wait_gone(victim)
        live.whole(victim)
        assert other in live.worker_pids()
        load.wait_for(20)
    load.check()
