"""A directory that root makes for another user cannot be swapped."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from metad.system.directories import make_directory


def test_it_is_new_private_and_given_away(tmp_path: Path) -> None:
    os.close(make_directory(tmp_path / "out", None))
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    with pytest.raises(FileExistsError):
        make_directory(tmp_path / "out", None)


def test_a_new_directory_that_was_swapped_is_not_given_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between mkdir and chown another user puts a link, or a directory with files, there."""
    victim = tmp_path / "victim"
    victim.mkdir(0o755)
    (victim / "file").write_text("x")
    real = os.mkdir

    def swap(name: str, mode: int, *, dir_fd: int) -> None:
        real(name, mode, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)
        if link:
            os.symlink(victim, name, dir_fd=dir_fd)
        else:
            os.rename(victim, tmp_path / name)

    for link in (True, False):
        with monkeypatch.context() as patched:
            patched.setattr("os.mkdir", swap)
            with pytest.raises(OSError, match=r"directory|replaced"):
                make_directory(tmp_path / "out", os.stat(tmp_path))
        (tmp_path / "out").unlink() if link else None
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
