"""The space of a log when the disk does not do what it was asked."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.store.log import files as log_files
from metad.store.log import header, quarantine
from metad.store.log.files import LogBusyError
from metad.store.log.header import ACTIVE, FREE, LogHeader, log_path
from metad.store.log.salvage import BLOCK, read_past
from metad.store.log.scan import Damage
from metad.store.log.successor import Ended, write_successor
from metad.store.log.writer import LogWriter
from metad.store.log_table import Allocation
from metad.system.osio import Osio
from tests.support.osio_kit import Faults, KitOsio
from tests.support.store_kit import make_identity

SECRET = b"s" * 32
NEW = LogHeader(ACTIVE, 0, 1, 1000, 32768, 512, 1, b"i" * 16, SECRET)


@pytest.fixture
def osio() -> Iterator[KitOsio]:
    made = KitOsio()
    yield made
    made.close_all()


@pytest.fixture
def writer(tmp_path: Path, osio: KitOsio) -> LogWriter:
    return LogWriter(osio, log_files.create(osio, str(tmp_path), NEW), NEW)


def short(osio: KitOsio) -> None:
    osio.faults = Faults("write", 1, short=True)


def test_a_sync_after_one_that_failed_is_not_believed(writer: LogWriter) -> None:
    """The kernel reports a failed write-back once, to one of two threads."""
    writer.poisoned = True
    with pytest.raises(OSError, match="failed earlier"):
        writer._sync_now()


def test_a_poisoned_log_records_no_predecessor(tmp_path: Path, writer: LogWriter) -> None:
    """A failed sync of zeros must not make the sync of its header look good."""
    writer.poisoned = True
    with pytest.raises(OSError, match="failed earlier"):
        writer.state_predecessor(writer)


def test_a_short_write_of_zeros_is_an_error(writer: LogWriter, osio: KitOsio) -> None:
    writer.zero_from_here()
    short(osio)
    with pytest.raises(OSError, match="short write of zeros"):
        writer.zero_step(1 << 20)
    assert not writer.poisoned


def test_a_short_write_of_a_seal_is_an_error(writer: LogWriter, osio: KitOsio) -> None:
    short(osio)
    with pytest.raises(OSError, match="short write of the seal"):
        writer.seal()


def test_blocks_are_asked_for_once(tmp_path: Path, osio: KitOsio) -> None:
    large = NEW._replace(size=1 << 20)
    fd = log_files.create(osio, str(tmp_path), large, first=64 << 10)
    writer = LogWriter(osio, fd, large)
    writer.begin_sparse(64 << 10)
    assert writer.fits(200_000, 36)
    assert not writer.takes(200_000, 36)
    writer.reserve(200_000, 36, 0)
    assert writer.takes(200_000, 36)
    osio.faults = Faults("allocate", 1, persistent=True)
    writer.reserve(200_000, 36, 0)
    with pytest.raises(OSError):
        writer.reserve(400_000, 36, 0)
    assert not writer.poisoned
    osio.faults = None
    writer.reserve(0, 0, 1 << 30)
    assert os.fstat(fd).st_size == large.size
    assert header.read(osio, fd, SECRET) == large


def test_nothing_is_written_through_a_closed_log(tmp_path: Path, osio: KitOsio) -> None:
    """Its descriptor's number is another file's at once."""
    large = NEW._replace(size=1 << 20)
    writer = LogWriter(osio, log_files.create(osio, str(tmp_path), large, first=64 << 10), large)
    writer.begin_sparse(64 << 10)
    writer.close()
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    try:
        os.dup2(other, writer.fd)
        assert not writer.zero_step(1 << 30)
        writer.reserve(0, 0, 1 << 20)
        assert os.fstat(other).st_size == 0
    finally:
        for fd in {other, writer.fd}:
            os.close(fd)


def test_a_log_that_cannot_be_marked_free_is_unlinked(tmp_path: Path, osio: KitOsio) -> None:
    fd = log_files.create(osio, str(tmp_path), NEW)
    osio.faults = Faults("sync", 1)
    assert not log_files.free(osio, str(tmp_path), fd, NEW)
    assert not list(tmp_path.iterdir())


def test_a_short_write_of_the_third_mark_is_an_error(tmp_path: Path, osio: KitOsio) -> None:
    fd = log_files.create(osio, str(tmp_path), NEW)
    osio.faults = Faults("write", 2, short=True)
    with pytest.raises(OSError, match="short write"):
        log_files.mark_free(osio, fd, NEW._replace(seal_offset=1024, seal_size=100))


def test_a_free_log_that_cannot_be_read_is_left_alone(tmp_path: Path, osio: KitOsio) -> None:
    fd = log_files.create(osio, str(tmp_path), NEW)
    log_files.mark_free(osio, fd, NEW)
    osio.close(fd)
    osio.faults = Faults("pread", 1, error=errno.EIO, persistent=True)
    with pytest.raises(LogBusyError):
        log_files.reuse(osio, str(tmp_path), NEW._replace(life=2000), NEW.life)


def test_a_log_that_another_process_makes_is_left_alone(tmp_path: Path, osio: KitOsio) -> None:
    other = os.open(log_path(str(tmp_path), 1) + ".new", os.O_RDWR | os.O_CREAT)
    try:
        assert Osio().try_lock(other)
        with pytest.raises(LogBusyError):
            log_files.create(osio, str(tmp_path), NEW)
    finally:
        os.close(other)


def test_an_error_of_the_reader_lock_is_no_answer() -> None:
    with pytest.raises(OSError):
        log_files.try_reader_lock(1 << 20)


def test_a_header_of_another_version_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(header, "VERSION", 2)
        block = NEW.pack()
    assert header.parse(block, SECRET) is None


def test_a_quarantine_without_space_is_an_error(tmp_path: Path, osio: KitOsio) -> None:
    store = make_identity(tmp_path / "hub")
    log = NEW._replace(secret=store.secret)
    fd = log_files.create(osio, store.logs, log)
    short(osio)
    with pytest.raises(OSError, match="short write"):
        quarantine.quarantine_range(osio, store, fd, log, Damage(512, 1024))


def test_a_successor_takes_the_place_of_a_free_log(tmp_path: Path, osio: KitOsio) -> None:
    store = make_identity(tmp_path / "hub")
    free = NEW._replace(state=FREE, secret=store.secret, store_id=store.store_id)
    osio.close(log_files.create(osio, store.logs, free))
    ended = Ended(free._replace(state=ACTIVE, number=7, life=1500), 512)
    made = write_successor(osio, store, ended, Allocation(1, 2000, False, free.life))
    assert (made.log.number, made.log.predecessor_life) == (1, 1500)
    with pytest.raises(LogBusyError):  # it is not free any more
        write_successor(osio, store, ended, Allocation(1, 3000, False, free.life))


class BadBlocks(Osio):
    """A disk with some blocks that cannot be read."""

    def __init__(self, *bad: int, error: int = errno.EIO) -> None:
        self.bad = bad
        self.error = error

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        blocks = range(offset // BLOCK, (offset + max(count, 1) - 1) // BLOCK + 1)
        if any(block in blocks for block in self.bad):
            raise OSError(self.error, "bad block")
        return super().pread(fd, count, offset)


def test_an_unreadable_block_costs_what_lies_in_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = bytes(range(1, 251)) * 100
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        expected = bytearray(data)
        expected[2 * BLOCK : 3 * BLOCK] = b"\xff" * BLOCK
        assert read_past(BadBlocks(2), fd, len(data) + 100, 0) == expected
        assert read_past(BadBlocks(2), fd, 100, 2 * BLOCK + 7) == b"\xff" * 100
        assert (
            read_past(BadBlocks(0), fd, 2 * BLOCK, BLOCK - 1)[:2]
            == b"\xff" + data[BLOCK : BLOCK + 1]
        )
        with pytest.raises(OSError):
            read_past(BadBlocks(0, error=errno.EACCES), fd, 10, 0)
    finally:
        os.close(fd)
