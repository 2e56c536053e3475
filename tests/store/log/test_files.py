"""Log files made, reused and freed, with their locks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.store.log import files as log_files
from metad.store.log import header
from metad.store.log.files import LogBusyError
from metad.store.log.header import ACTIVE, FREE, LogHeader, log_path
from tests.support.osio_kit import Faults, KitOsio

SECRET = b"s" * 32
NEW = LogHeader(ACTIVE, 0, 1, 1000, 32768, 512, 1, b"i" * 16, SECRET)
NEXT = NEW._replace(life=2000)


@pytest.fixture
def osio() -> Iterator[KitOsio]:
    made = KitOsio(record=True)
    yield made
    made.close_all()


def make_free(osio: KitOsio, directory: Path, log: LogHeader = NEW) -> None:
    fd = log_files.create(osio, str(directory), log)
    log_files.mark_free(osio, fd, log)
    osio.close(fd)


def read(osio: KitOsio, directory: Path) -> LogHeader | None:
    fd = osio.open(log_path(str(directory), 1), os.O_RDONLY)
    try:
        return header.read(osio, fd, SECRET)
    finally:
        osio.close(fd)


def test_a_new_log_and_its_name_are_durable(tmp_path: Path, osio: KitOsio) -> None:
    log_files.create(osio, str(tmp_path), NEW)
    assert read(osio, tmp_path) == NEW
    kinds = [op.kind for op in osio.ops]
    last_write = max(i for i, kind in enumerate(kinds) if kind == "write")
    assert kinds.index("sync", last_write) < kinds.index("dir-sync", last_write)


def test_a_new_log_has_its_blocks(tmp_path: Path, osio: KitOsio) -> None:
    fd = log_files.create(osio, str(tmp_path), NEW)
    stat = os.fstat(fd)
    assert stat.st_size == NEW.size
    assert stat.st_blocks * 512 >= NEW.size


def test_a_log_that_is_there_is_not_made_again(tmp_path: Path, osio: KitOsio) -> None:
    log_files.create(osio, str(tmp_path), NEW)
    with pytest.raises(FileExistsError):
        log_files.create(osio, str(tmp_path), NEXT)
    assert read(osio, tmp_path) == NEW


@pytest.mark.parametrize("kind", ["allocate", "write", "sync", "dir-sync"])
def test_a_log_that_cannot_be_made_is_not_there(tmp_path: Path, osio: KitOsio, kind: str) -> None:
    osio.faults = Faults(kind, 1, error=errno.ENOSPC)
    with pytest.raises(OSError):
        log_files.create(osio, str(tmp_path), NEW)
    assert list(tmp_path.iterdir()) == []
    assert osio.names == {}


def test_the_writers_lock_lasts_until_it_is_closed(tmp_path: Path, osio: KitOsio) -> None:
    fd = log_files.create(osio, str(tmp_path), NEW)
    with pytest.raises(LogBusyError):
        log_files.lock_log(osio, str(tmp_path), 1)
    osio.close(fd)
    fd = log_files.lock_log(osio, str(tmp_path), 1)
    with pytest.raises(LogBusyError):
        log_files.reuse(osio, str(tmp_path), NEXT, NEW.life)


def test_a_freed_log_counts_for_nothing(tmp_path: Path, osio: KitOsio) -> None:
    fd = log_files.create(osio, str(tmp_path), NEW)
    log_files.mark_free(osio, fd, NEW._replace(seal_offset=512, seal_size=100))
    found = read(osio, tmp_path)
    assert found == NEW._replace(state=FREE)


def test_a_free_log_begins_its_next_life(tmp_path: Path, osio: KitOsio) -> None:
    make_free(osio, tmp_path)
    log_files.reuse(osio, str(tmp_path), NEXT, NEW.life)
    assert read(osio, tmp_path) == NEXT
    assert osio.syncs[-1] == (log_path(str(tmp_path), 1), True)
    with pytest.raises(LogBusyError):
        log_files.lock_log(osio, str(tmp_path), 1)


@pytest.mark.parametrize("change", ["reuse", "free"])
def test_the_two_headers_are_never_under_way_together(
    tmp_path: Path, osio: KitOsio, change: str
) -> None:
    """A power cut may trash every sector that was written and not yet synced: if both copies are
    written before one sync, a log has none left."""
    fd = log_files.create(osio, str(tmp_path), NEW)
    osio.ops.clear()
    if change == "free":
        log_files.mark_free(osio, fd, NEW)
    else:
        log_files.mark_free(osio, fd, NEW)
        osio.close(fd)
        osio.ops.clear()
        log_files.reuse(osio, str(tmp_path), NEXT, NEW.life)
    assert [op.kind for op in osio.ops] == ["write", "sync", "write", "sync"]


@pytest.mark.parametrize("wrong", ["in use", "another life", "no header"])
def test_a_log_whose_own_header_does_not_say_free_is_not_written_to(
    tmp_path: Path, osio: KitOsio, wrong: str
) -> None:
    """Regression: one wrong cell of the log table cost a whole log."""
    fd = log_files.create(osio, str(tmp_path), NEW)
    if wrong != "in use":
        log_files.mark_free(osio, fd, NEW)
    osio.close(fd)
    path = Path(log_path(str(tmp_path), 1))
    if wrong == "no header":
        path.write_bytes(b"x" * NEW.size)
    before = path.read_bytes()
    with pytest.raises(LogBusyError, match="free"):
        log_files.reuse(osio, str(tmp_path), NEXT, NEW.life + (wrong == "another life"))
    assert path.read_bytes() == before


def test_a_log_that_is_being_read_is_not_reused(tmp_path: Path, osio: KitOsio) -> None:
    make_free(osio, tmp_path)
    reader = osio.open(log_path(str(tmp_path), 1), os.O_RDONLY)
    assert log_files.try_reader_lock(reader)
    with pytest.raises(LogBusyError):
        log_files.reuse(osio, str(tmp_path), NEXT, NEW.life)
    assert read(osio, tmp_path) == NEW._replace(state=FREE)
    log_files.release_reader_lock(reader)
    log_files.reuse(osio, str(tmp_path), NEXT, NEW.life)
    assert read(osio, tmp_path) == NEXT


def test_readers_share_their_lock_and_keep_off_the_next_life(tmp_path: Path, osio: KitOsio) -> None:
    osio.close(log_files.create(osio, str(tmp_path), NEW))
    path = log_path(str(tmp_path), 1)
    one, two, writer = (osio.open(path, os.O_RDWR) for _ in range(3))
    assert log_files.try_reader_lock(one)
    assert log_files.try_reader_lock(two)
    assert not log_files.try_reader_lock(writer, exclusive=True)
    osio.close(one)
    assert not log_files.try_reader_lock(writer, exclusive=True)
    osio.close(two)
    assert log_files.try_reader_lock(writer, exclusive=True)


def test_the_readers_lock_and_the_writers_do_not_meet(tmp_path: Path, osio: KitOsio) -> None:
    log_files.create(osio, str(tmp_path), NEW)
    reader = osio.open(log_path(str(tmp_path), 1), os.O_RDONLY)
    assert log_files.try_reader_lock(reader)


def test_a_log_of_another_size_gets_a_new_file(tmp_path: Path, osio: KitOsio) -> None:
    """After a change of log_size the free logs of the old size must not stop the hub."""
    make_free(osio, tmp_path, NEW._replace(size=16384))
    fd = log_files.reuse(osio, str(tmp_path), NEXT, NEW.life)
    assert os.fstat(fd).st_size == NEXT.size
    assert read(osio, tmp_path) == NEXT


def test_a_file_with_two_links_is_not_written_to(tmp_path: Path, osio: KitOsio) -> None:
    """The other name may be a backup."""
    make_free(osio, tmp_path)
    kept = tmp_path / "kept"
    os.link(log_path(str(tmp_path), 1), kept)
    before = kept.read_bytes()
    log_files.reuse(osio, str(tmp_path), NEXT, NEW.life)
    assert kept.read_bytes() == before
    assert read(osio, tmp_path) == NEXT
