"""The log file that root opens: links and other users' files are refused, rotation works."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metad.errors import CannotCreateError
from metad.system.log_file import LogFile, open_log


def test_a_new_file_is_made_and_appended_to(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        fd = open_log(tmp_path / "log")
        os.write(fd, text)
        os.close(fd)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o640 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_link_does_not_create_its_target(tmp_path: Path) -> None:
    """Regression: as root, `metad start --log-file` on a link created a file of root's anywhere."""
    (tmp_path / "log").symlink_to(tmp_path / "target")
    with pytest.raises(CannotCreateError, match="symbolic link"):
        open_log(tmp_path / "log")
    assert not (tmp_path / "target").exists()


def test_a_file_with_a_second_name_and_a_pipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("root\n")
    os.link(tmp_path / "passwd", tmp_path / "log")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        for name in ("log", "pipe"):
            with pytest.raises(CannotCreateError, match="single name"):
                open_log(tmp_path / name)
    finally:
        os.close(reader)
    assert (tmp_path / "passwd").read_text() == "root\n"


def test_a_pipe_without_a_reader_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CannotCreateError):
        open_log(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_file_belongs_to_the_hubs_user_and_never_another_one(tmp_path: Path) -> None:
    os.close(open_log(tmp_path / "log", (54321, 54321)))
    assert (tmp_path / "log").stat().st_uid == 54321
    os.close(open_log(tmp_path / "log", (54321, 54321)))
    with pytest.raises(CannotCreateError, match="another user"):
        open_log(tmp_path / "log", (54322, 54322))
    assert (tmp_path / "log").stat().st_uid == 54321


def test_a_device_can_be_the_log() -> None:
    os.close(open_log(Path("/dev/null"), (1, 1)))


def test_after_a_rename_lines_go_to_the_new_file(tmp_path: Path, capfd: object) -> None:
    kept = os.dup(2)
    log = LogFile(tmp_path / "log")
    try:
        log.take()
        os.write(2, b"before\n")
        (tmp_path / "log").rename(tmp_path / "log.1")
        os.write(2, b"between\n")
        log.reopen()
        os.write(2, b"after\n")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert (tmp_path / "log.1").read_bytes() == b"before\nbetween\n"
    assert (tmp_path / "log").read_bytes() == b"after\n"


def test_without_a_path_nothing_is_opened() -> None:
    LogFile().take()
    LogFile().reopen()
