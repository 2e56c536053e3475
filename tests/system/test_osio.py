"""What the store's access to the operating system adds to the system calls."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from metad.system.osio import BLOCK, LEFT_FREE, Osio

KIB = 1024


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def disk_has(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    disk = SimpleNamespace(f_bavail=free // KIB, f_frsize=KIB)
    monkeypatch.setattr(os, "fstatvfs", lambda fd: disk)


def blocks(file: int) -> int:
    return os.fstat(file).st_blocks * BLOCK


def test_a_disk_that_lacks_the_blocks_is_left_as_it_is(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a collector that could not make a log took all blocks, and just then the index
    could not enter a message, which a session did not list."""
    disk_has(monkeypatch, 255 * KIB + LEFT_FREE)
    with pytest.raises(OSError, match="No space") as caught:
        Osio().allocate(file, 256 * KIB)
    assert caught.value.errno == errno.ENOSPC
    assert (os.fstat(file).st_size, blocks(file)) == (0, 0)


def test_what_fits_is_allocated(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_has(monkeypatch, 256 * KIB + LEFT_FREE)
    Osio().allocate(file, 256 * KIB)
    assert blocks(file) >= 256 * KIB


def test_a_block_at_the_end_of_the_file_does_not_count(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a log's last header."""
    Osio().allocate(file, 64 * KIB)
    os.pwrite(file, b"header", 1024 * KIB)
    disk_has(monkeypatch, LEFT_FREE)
    with pytest.raises(OSError, match="No space"):
        Osio().allocate(file, 4 * KIB, 64 * KIB)


def test_blocks_that_a_file_has_need_no_space(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A free log is used again on a full disk."""
    Osio().allocate(file, 256 * KIB)
    disk_has(monkeypatch, 0)
    Osio().allocate(file, 192 * KIB, 64 * KIB)
    with pytest.raises(OSError, match="No space"):
        Osio().allocate(file, 64 * KIB, 256 * KIB)
