"""Reliability row 9: shared memory is created again at each start; losing it costs no mail."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import posix_ipc
import pytest

from metad.control_client import request
from metad.errors import MetadError
from metad.store import log_table
from metad.system import shared_memory
from metad.system.shared_memory import PROCESSES, Cell, SharedArea
from tests.support.clients import bodies, deliver, in_time, message
from tests.support.hub import DEADLINE, Hub


@pytest.fixture
def hub():
    with Hub(["alice"], workers=2) as made:
        yield made


def segment(hub: Hub) -> str:
    return (hub.data / "run" / "segment").read_text()


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


def test_a_name_that_is_gone_hinders_no_process(hub):
    """Every process maps it by inheritance; only tests and debuggers need the name."""
    kept = message()
    deliver(hub, kept, "alice")
    shared_memory.unlink(segment(hub))
    more = message()
    deliver(hub, more, "alice")
    assert bodies(hub, "alice") == [kept, more]
    hub.restart()
    assert bodies(hub, "alice") == [kept, more]


def test_a_status_of_a_table_that_makes_no_sense_does_not_end_the_hub(hub):
    sent = message()
    deliver(hub, sent, "alice")
    area = SharedArea.attach(segment(hub))
    states = area.log_cells()
    kept, states[shared_memory.LOG_CELLS] = states[shared_memory.LOG_CELLS], 77
    with pytest.raises(MetadError, match="internal error: ValueError"):
        request(hub.data, "status")
    states[shared_memory.LOG_CELLS] = kept
    assert request(hub.data, "status")["state"] == "serving"
    assert bodies(hub, "alice") == [sent]


def test_signals_while_the_master_waits_for_a_dead_holders_semaphore_do_not_end_the_hub(hub):
    """Regression: the death of another child interrupted that wait, and the master ended with a
    traceback, and all its children with it.  Reported by a test that killed two workers at once."""
    sent = message()
    deliver(hub, sent, "alice")
    name, master = segment(hub), hub.process.pid
    area = SharedArea.attach(name)
    semaphore = posix_ipc.Semaphore(name)
    semaphore.acquire(DEADLINE)  # as the victim would have it
    victim = hub.workers()[0]
    [row] = (row for row in map(area.process, range(PROCESSES)) if row[Cell.PID] == victim)
    row[Cell.SEMAPHORE] = log_table.HOLDING
    os.kill(victim, signal.SIGKILL)

    def is_whole() -> bool:
        os.kill(master, signal.SIGCHLD)
        return semaphore.value == 1 and len(set(hub.workers()) - {victim}) == 2

    assert in_time(is_whole)
    semaphore.close()
    assert "warning: released the semaphore of a dead process" in hub.log.read_text()
    deliver(hub, sent, "alice")
    assert bodies(hub, "alice") == [sent, sent]


def test_bytes_scribbled_over_all_of_it_cost_no_mail(hub):
    """Whatever the table says, the logs and the index are the truth at the next start.

    All processes are stopped meanwhile: one that read the table would end with a traceback.
    """
    rng = random.Random(int(os.environ.get("METAD_TEST_SEED", "1999")))
    sent = [message() for _ in range(20)]
    for one in sent:
        deliver(hub, one, "alice")
    area = SharedArea.attach(segment(hub))
    cells = area.cells
    used = (
        shared_memory.HEAD_CELLS
        + shared_memory.PROCESSES * shared_memory.PROCESS_CELLS
        + 64 * shared_memory.LOG_CELLS
    )
    os.killpg(hub.process.pid, signal.SIGSTOP)
    assert in_time(lambda: all(is_stopped(pid) for pid in hub.pids()))
    for at in range(used):
        cells[at] = rng.getrandbits(64)
    hub.kill()
    hub.start()
    assert bodies(hub, "alice") == sent
    deliver(hub, sent[0], "alice")
    assert len(bodies(hub, "alice")) == 21
