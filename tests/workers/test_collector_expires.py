"""The collector's process expires mail by itself, on time, despite obstacles."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metad.config import parse as config_parse
from metad.store.hub_time import HubTime
from metad.store.mailbox_locks import MailboxLocks
from metad.system.shared_memory import Cell, ProcessRow
from metad.users.account import Policy
from metad.users.database import UserDatabase
from metad.workers import collector, expiry_scan
from tests.support.osio_kit import FakeClock, KitOsio
from tests.support.store_kit import StoreKit

DEADLINE = 30.0
ROW, ASKED = 6, 5


def in_time(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + DEADLINE
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.02)
    return True


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreKit]:
    """Mail some years old for a user with an expiry, and a later start of the hub."""
    monkeypatch.setattr(expiry_scan, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(expiry_scan, "AGAIN_SECONDS", 0.0)
    with UserDatabase(tmp_path / "users", create=True) as users:
        users.add("ann@x.org")
        users.set_policy("ann@x.org", Policy(expiry=60))
        users.add("bob@x.org")
    with StoreKit(tmp_path, KitOsio(clock=FakeClock(real=1_500_000_000 * 10**9))) as made:
        made.start()
        for number in range(7):
            made.put([2, 3], b"%d" % number)
        made.stop()
        made.osio.clock = None
        made.recover()
        # Years since the newest mail: an operator confirmed the clock.
        HubTime(made.osio, made.area, print).answer(accept=True)
        yield made


@contextmanager
def running(kit: StoreKit) -> Iterator[ProcessRow]:
    """The running process, on an otherwise idle hub.  Returns its row."""
    file = kit.data / "metad.toml"
    file.write_text('hostname = "mx.org"\n[store]\nlog_size = "1MiB"\n')
    row, asked = kit.area.process(ROW), kit.area.process(ASKED)
    settings = config_parse.load(file, kit.data, {})
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            setup = collector.CollectorSetup(
                settings, kit.area, kit.semaphore, row, asked, lambda: None
            )
            code = collector.main(setup)
        finally:
            os._exit(code)
    try:
        yield row
    finally:
        os.kill(pid, signal.SIGTERM)
        assert os.waitpid(pid, 0)[1] == 0


def counts(kit: StoreKit) -> list[int]:
    kit.start()
    return [len(kit.listing(mailbox)) for mailbox in (2, 3)]


@pytest.mark.slow
def test_it_walks_by_itself(kit: StoreKit) -> None:
    with running(kit) as row:
        assert in_time(lambda: row[Cell.EXPIRED] == 7)
        assert row[Cell.ORPHANED] == 0
    assert counts(kit) == [0, 7]


@pytest.mark.slow
def test_what_is_in_use_goes_once_it_is_not(kit: StoreKit) -> None:
    session = MailboxLocks(kit.osio, kit.store.locks)
    assert session.acquire(2)
    with running(kit) as row:
        assert in_time(lambda: row[Cell.IN_USE] > 1)
        assert row[Cell.EXPIRED] == 0
        session.release(2)
        assert in_time(lambda: row[Cell.EXPIRED] == 7)
    assert counts(kit) == [0, 7]


@pytest.mark.slow
def test_a_clock_that_is_not_believed_expires_nothing(
    kit: StoreKit, capfd: pytest.CaptureFixture[str]
) -> None:
    kit.area.clock_suspect = 1
    with running(kit):
        kit.area.process(ASKED)[Cell.ROUND] = 3
        assert in_time(lambda: kit.area.process(ROW)[Cell.ROUND] == 3)
    assert "nothing expires" in capfd.readouterr().err
    assert counts(kit) == [7, 7]


@pytest.mark.slow
def test_without_users_it_says_so_and_collects_on(
    kit: StoreKit, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(kit.data / "users")
    with running(kit) as row:
        kit.area.process(ASKED)[Cell.ROUND] = 3
        assert in_time(lambda: row[Cell.ROUND] == 3)
    said = capfd.readouterr().err
    assert "warning: expired mail was not deleted" in said
    assert "there is no users database" in said
    assert counts(kit) == [7, 7]
