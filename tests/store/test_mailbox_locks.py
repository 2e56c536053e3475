"""Mailbox locks: one session at a time, in one process and between processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.store.mailbox_locks import FILES, MailboxLocks
from metad.system.osio import Osio


@pytest.fixture
def locks(tmp_path: Path) -> Iterator[MailboxLocks]:
    made = MailboxLocks(Osio(), str(tmp_path))
    yield made
    made.close()


@pytest.fixture
def others(tmp_path: Path) -> Iterator[MailboxLocks]:
    """Another worker, as far as the kernel can tell: other open files."""
    made = MailboxLocks(Osio(), str(tmp_path))
    yield made
    made.close()


def test_a_mailbox_has_one_session_in_a_worker(locks: MailboxLocks) -> None:
    assert locks.acquire(7)
    assert not locks.acquire(7)
    locks.release(7)
    assert locks.acquire(7)


def test_a_mailbox_has_one_session_in_the_hub(locks: MailboxLocks, others: MailboxLocks) -> None:
    assert locks.acquire(7)
    assert not others.acquire(7)
    locks.release(7)
    assert others.acquire(7)
    assert not locks.acquire(7)


def test_mailboxes_of_one_lock_file_do_not_meet(locks: MailboxLocks, others: MailboxLocks) -> None:
    assert locks.acquire(7)
    assert others.acquire(7 + FILES)
    assert locks.acquire(7 + 2 * FILES)
    locks.release(7)
    assert not others.acquire(7 + 2 * FILES)


def test_a_refused_session_releases_nothing(locks: MailboxLocks, others: MailboxLocks) -> None:
    assert locks.acquire(7)
    assert not others.acquire(7)
    assert not locks.acquire(7)
    assert not others.acquire(7)


def test_there_are_at_most_256_files(locks: MailboxLocks, tmp_path: Path) -> None:
    for mailbox in range(0, 3 * FILES, 2):
        assert locks.acquire(mailbox)
    assert len(list(tmp_path.iterdir())) == FILES // 2


@pytest.mark.parametrize("mailbox", [0, 1, 2**32 - 1])
def test_any_mailbox_number_can_be_locked(
    locks: MailboxLocks, others: MailboxLocks, mailbox: int
) -> None:
    assert locks.acquire(mailbox)
    assert not others.acquire(mailbox)


def test_a_dead_process_holds_nothing(locks: MailboxLocks, tmp_path: Path) -> None:
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        ok = MailboxLocks(Osio(), str(tmp_path)).acquire(7)
        os.write(ready[1], b"1" if ok else b"0")
        os.read(done[0], 1)
        os._exit(0)
    try:
        assert os.read(ready[0], 1) == b"1"
        assert not locks.acquire(7)
        os.kill(child, 9)
    finally:
        os.close(done[1])
        os.waitpid(child, 0)
        for fd in (*ready, done[0]):
            os.close(fd)
    assert locks.acquire(7)


def test_closing_releases_all(locks: MailboxLocks, others: MailboxLocks) -> None:
    assert locks.acquire(7)
    assert locks.acquire(8)
    locks.close()
    assert others.acquire(7)
    assert others.acquire(8)
