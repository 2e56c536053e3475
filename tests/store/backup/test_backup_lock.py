"""The lock between those that read logs and the collector that frees them, and its lease."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.store.backup.backup import Backup
from metad.store.backup_lock import FreeLock, LeaseLostError, Pin
from metad.store.fsck.fsck import Fsck, Plan
from metad.store.identity import Store
from metad.system.osio import Osio
from tests.support.store_kit import StoreKit

LEASE = 10.0


class SlowOsio(Osio):
    """A clock that the test moves."""

    now = 1_000_000_000

    def monotonic_ns(self) -> int:  # type: ignore[override]
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with StoreKit(tmp_path) as kit:
        kit.start()
        kit.put([1], b"x")
        kit.stop()
        yield kit.store


@pytest.fixture
def osio() -> SlowOsio:
    return SlowOsio()


def wait(osio: SlowOsio, seconds: float) -> None:
    osio.now += int(seconds * 1e9)


def test_a_holder_that_gets_on_keeps_the_lock_for_ever(osio: SlowOsio, store: Store) -> None:
    said: list[str] = []
    collector, pin = FreeLock(osio, store, LEASE, said.append), Pin(osio, store)
    for _ in range(5):
        assert not collector.acquire()
        wait(osio, LEASE - 1)
        pin.renew()
    pin.check()
    pin.close()
    assert collector.acquire()
    assert not said
    collector.close()


def test_one_that_does_not_loses_it_and_notices(osio: SlowOsio, store: Store) -> None:
    said: list[str] = []
    collector, pin = FreeLock(osio, store, LEASE, said.append), Pin(osio, store)
    assert not collector.acquire()
    wait(osio, LEASE - 1)
    assert not collector.acquire()
    pin.check()
    wait(osio, 1)
    assert collector.acquire()
    assert len(said) == 1
    with pytest.raises(LeaseLostError) as raised:
        pin.renew()
    assert "run it again" in raised.value.line
    with pytest.raises(LeaseLostError) as raised:
        pin.check()
    assert "run it again" in raised.value.line
    collector.release()
    fresh = Pin(osio, store)  # the next one has the new file, which keeps the collector out
    assert not collector.acquire()
    fresh.close()
    pin.close()
    collector.close()


def test_no_holder_loses_it_while_the_collector_does_not_want_it(
    osio: SlowOsio, store: Store
) -> None:
    collector, pin = FreeLock(osio, store, LEASE), Pin(osio, store)
    wait(osio, 100 * LEASE)
    assert not collector.acquire()
    pin.check()
    pin.close()
    collector.close()


def test_a_file_that_was_removed_by_hand_is_no_lock(osio: SlowOsio, store: Store) -> None:
    collector, pin = FreeLock(osio, store, LEASE), Pin(osio, store)
    (store.data / "run" / "backup").unlink()
    assert collector.acquire()
    with pytest.raises(LeaseLostError):
        pin.check()
    pin.close()
    collector.close()


class Unopenable(SlowOsio):
    """The file cannot be opened until another has its name."""

    bad = 0

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        if self.bad and path.endswith("run/backup") and self.stat(path).st_ino == self.bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return super().open(path, flags, mode)


def test_a_file_that_cannot_be_opened_may_be_held_and_is_replaced_after_the_lease(
    store: Store,
) -> None:
    """Regression: no log was freed for ever."""
    osio = Unopenable()
    said: list[str] = []
    pin = Pin(osio, store)
    osio.bad = osio.stat(str(store.data / "run" / "backup")).st_ino
    collector = FreeLock(osio, store, LEASE, said.append)
    collector.release()  # as before a wait for a recovery
    for _ in range(3):  # one that has it open and gets on is safe
        assert not collector.acquire()
        wait(osio, LEASE - 1)
        pin.renew()
    assert not collector.acquire()
    wait(osio, LEASE - 1)
    assert not collector.acquire()
    pin.check()
    wait(osio, 1)
    assert collector.acquire()
    with pytest.raises(LeaseLostError):
        pin.check()
    pin.close()
    collector.release()
    fresh = Pin(osio, store)
    assert not collector.acquire()
    fresh.close()
    assert collector.acquire()
    collector.close()
    assert ["cannot be opened" in said[0], "was replaced" in said[1], len(said)] == [True, True, 2]


class Hanging(SlowOsio):
    """The collector breaks the lock in the middle of a call of that name."""

    def __init__(self, store: Store, name: str) -> None:
        self._collector = FreeLock(self, store, LEASE)
        self._name = name

    def hang(self, name: str) -> None:
        if name == self._name:
            self._name = ""
            assert not self._collector.acquire()
            wait(self, LEASE)
            assert self._collector.acquire()
            self._collector.close()

    def clone(self, source: int, target: int) -> None:
        self.hang("clone")
        super().clone(source, target)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        self.hang("pread")
        return super().pread(fd, count, offset)


def test_a_backup_without_its_lease_is_none(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    with pytest.raises(LeaseLostError):
        Backup(Hanging(store, "clone"), store, target).run()
    assert not (target / "manifest.json").exists()


def test_a_check_without_its_lease_is_none(store: Store) -> None:
    osio = SlowOsio()
    pin = Pin(osio, store)
    hanging = Hanging(store, "pread")
    with pytest.raises(LeaseLostError):
        Fsck(hanging, store, Plan("", running=True), lambda text: None, pin=pin).run()
    pin.close()
