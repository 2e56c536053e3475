"""The view of several processes of a node: what one has made durable, the others use at once."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from metad.cluster.current_view import CurrentView
from metad.cluster.view_file import ViewFile
from metad.system.osio import Osio
from tests.cluster.views import make_member, make_view

ONE = make_view(make_member(1), make_member(2), epoch=5)
TWO = ONE.changed(alone="accept")


class FullDisk(Osio):
    """Of one process: it cannot write any more, once `is_full`."""

    is_full = False

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:  # type: ignore[override]
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().pwrite(fd, data, offset)


def test_a_view_that_another_process_keeps_needs_no_space_here(tmp_path: Path) -> None:
    path, cell = str(tmp_path / "view"), memoryview(bytearray(8)).cast("Q")
    ViewFile(Osio(), path).keep(ONE)
    disk = FullDisk()
    mine, other = CurrentView(ViewFile(disk, path), cell), CurrentView(ViewFile(Osio(), path), cell)
    assert mine.get() == ONE
    other.adopt(TWO)
    disk.is_full = True
    assert mine.get() == TWO
    assert mine.get() is mine.get()


def test_a_view_that_is_not_yet_in_force_is_made_durable_before_it_is_used(tmp_path: Path) -> None:
    """The process that renamed it was killed before it could sync the name."""
    path, cell = str(tmp_path / "view"), memoryview(bytearray(8)).cast("Q")
    ViewFile(Osio(), path).keep(ONE)
    disk = FullDisk()
    mine, other = CurrentView(ViewFile(disk, path), cell), CurrentView(ViewFile(Osio(), path), cell)
    other.adopt(TWO)
    ViewFile(Osio(), path).keep(TWO.changed())
    disk.is_full = True
    with pytest.raises(OSError, match="No space"):
        mine.get()
    disk.is_full = False
    assert mine.get() == TWO.changed()
    assert cell[0] == TWO.epoch + 1
