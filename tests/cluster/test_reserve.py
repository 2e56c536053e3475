"""The small files of a node on a disk that is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from metad.cluster import reserve
from metad.cluster.heard_marks import HeardMarks
from metad.cluster.marks import first
from metad.cluster.reserve import Reserve
from metad.cluster.view_file import ViewFile
from metad.system.osio import Buffer, Osio
from tests.cluster.views import make_member, make_view

ONE = make_view(make_member(1), make_member(2))
NEXT = ONE.changed()


class SmallDisk(Osio):
    """A disk of which others take whatever is free, except for `left` bytes."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.capacity = 1 << 40

    def used(self) -> int:
        return sum(one.stat().st_blocks * 512 for one in self.place.rglob("*") if one.is_file())

    def fill(self) -> None:
        self.capacity = self.used()

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        self._take(len(data))
        return super().pwrite(fd, data, offset)

    def allocate(self, fd: int, size: int, offset: int = 0) -> None:
        self._take(size - os.fstat(fd).st_size)
        super().allocate(fd, size, offset)

    def _take(self, size: int) -> None:
        if self.used() + size > self.capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(tmp_path: Path) -> SmallDisk:
    return SmallDisk(tmp_path)


def test_a_full_disk_keeps_no_member_out(disk: SmallDisk, tmp_path: Path) -> None:
    view, lines = ViewFile(disk, str(tmp_path / "view")), list[str]()
    heard = HeardMarks(disk, str(tmp_path / "heard"), lines.append)
    view.keep(ONE)
    Reserve(disk, str(tmp_path)).fill()
    disk.fill()
    following = ONE
    for number in range(2, 2 + reserve.SIZE // reserve.PART // 2):
        following = following.changed()
        view.keep(following)
        assert heard.accept(number, first(bytes([number] * 8)))
        disk.fill()  # others take what was given back
    assert ViewFile(Osio(), str(tmp_path / "view")).read() == following
    assert heard.mark(2) == first(bytes([2] * 8)).last
    assert not lines


def test_without_a_reserve_a_full_disk_is_an_error(disk: SmallDisk, tmp_path: Path) -> None:
    view = ViewFile(disk, str(tmp_path / "view"))
    view.keep(ONE)
    disk.fill()
    with pytest.raises(OSError, match="No space"):
        view.keep(NEXT)
    assert ViewFile(Osio(), str(tmp_path / "view")).read() == ONE


def test_the_reserve_is_used_up_and_filled_again(disk: SmallDisk, tmp_path: Path) -> None:
    kept = Reserve(disk, str(tmp_path))
    kept.fill()
    disk.fill()
    times = 0
    with pytest.raises(OSError, match="No space"):
        while times < 100:
            kept.replace(str(tmp_path / f"file{times}"), b"data")
            times += 1
            kept.fill()  # there is no space
            disk.fill()
    assert times == reserve.SIZE // reserve.PART
    disk.capacity = 1 << 40
    kept.fill()
    assert (tmp_path / reserve.NAME).stat().st_blocks * 512 == reserve.SIZE


def test_another_error_costs_no_reserve(disk: SmallDisk, tmp_path: Path) -> None:
    kept = Reserve(disk, str(tmp_path))
    kept.fill()
    with pytest.raises(FileNotFoundError):
        kept.replace(str(tmp_path / "none" / "file"), b"data")
    assert (tmp_path / reserve.NAME).stat().st_size == reserve.SIZE
