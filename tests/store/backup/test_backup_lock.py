"""The lock between those that read logs and the collector that frees them, and its lease."""

from __future__ import annotations

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
    with pytest.raises(LeaseLostError, match="run it again"):
        pin.renew()
    with pytest.raises(LeaseLostError, match="run it again"):
        pin.check()
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
