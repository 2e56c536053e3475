"""The master's watch of the index: what makes it suspect."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metad.master import index_watch
from metad.master.index_watch import IndexWatch
from metad.store.index import state as index_state
from metad.system.osio import Osio
from metad.system.write_back import write_back_failed

SMALL = 12  # MiB of the disk under the file system
LARGE = 64


def make(data: Path) -> tuple[IndexWatch, list[str]]:
    """The watch of a hub whose index is one file, which is never read."""
    (data / "index").mkdir(exist_ok=True)
    (data / "index" / "data.mdb").write_bytes(b"x" * 4096)
    lines: list[str] = []
    hub: Any = SimpleNamespace(config=SimpleNamespace(data=data), has_logs=True)
    return IndexWatch(hub, lines.append), lines


def reason(data: Path) -> str | None:
    return index_state.suspicion(Osio(), str(data / "index"))


def child(*, aborted: float = 0.0) -> Any:
    return SimpleNamespace(name="worker 1", aborted=aborted)


@pytest.mark.parametrize(
    ("code", "aborted", "suspect"),
    [
        (-signal.SIGBUS, 0.0, True),
        (-signal.SIGSEGV, 0.0, True),
        (-signal.SIGABRT, 0.0, True),  # LMDB, if it finds an impossible state
        (-signal.SIGABRT, 7.0, False),  # the watchdog
        (-signal.SIGKILL, 0.0, False),
        (74, 0.0, False),
        (0, 0.0, False),
    ],
)
def test_how_a_child_ends(tmp_path: Path, code: int, aborted: float, suspect: bool) -> None:
    watch, _ = make(tmp_path)
    watch.died(child(aborted=aborted), code)
    assert (reason(tmp_path) is not None) is suspect
    assert watch.is_suspect(1000.0) is suspect
    assert watch.recovers_again(child(aborted=aborted), code) is suspect
    assert not watch.recovers_again(child(), -signal.SIGBUS)  # once


def test_a_failed_write_back_makes_it_suspect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index of a running hub is never synced, so no process noticed."""
    watch, lines = make(tmp_path)
    asked: list[int] = []

    def failed(fd: int) -> bool:
        asked.append(os.fstat(fd).st_ino)
        return len(asked) > 2

    monkeypatch.setattr(index_watch, "write_back_failed", failed)
    assert not watch.is_suspect(1000.0)
    path = tmp_path / "index" / "data.mdb"
    path.rename(tmp_path / "old")
    path.write_bytes(b"")  # a rebuild has replaced it
    assert not watch.is_suspect(1010.0)
    assert asked == [(tmp_path / "old").stat().st_ino, path.stat().st_ino]
    assert watch.is_suspect(1020.0)
    assert reason(tmp_path) == "the disk did not take what was written to it"
    assert any("the index is rebuilt: the disk did not take" in line for line in lines)
    watch.close()
    path.unlink()
    assert watch.is_suspect(1030.0)  # and it does not fail without a file


def test_what_the_disk_does_not_take_is_noted_when_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of a failed write-back once."""
    watch, lines = make(tmp_path)
    failures = [True]
    monkeypatch.setattr(
        index_watch, "write_back_failed", lambda fd: bool(failures and failures.pop())
    )

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(index_state, "mark_suspect", refuse)
        assert not watch.is_suspect(1000.0)
        assert not watch.is_suspect(1010.0)
    (line,) = lines
    assert line.startswith("warning: cannot note that the index is suspect: ")
    assert watch.is_suspect(1020.0)
    assert reason(tmp_path) == "the disk did not take what was written to it"
    watch.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system whose disk is smaller than promised, until `grow`."""
    below, mounted = tmp_path / "below", tmp_path / "mounted"
    below.mkdir()
    mounted.mkdir()

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    try:
        run("mount", "-t", "tmpfs", "-o", f"size={SMALL}M", "tmpfs", str(below))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs root and the right to mount")
    try:
        run("truncate", "-s", f"{LARGE}M", str(below / "image"))
        try:
            run("mkfs.ext4", "-q", "-O", "^has_journal", str(below / "image"))
            run("mount", "-o", "loop", str(below / "image"), str(mounted))
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs ext4 on a loop device")
        yield mounted
        subprocess.run(["umount", "-l", str(mounted)], check=False, capture_output=True)
    finally:
        subprocess.run(["umount", "-l", str(below)], check=False, capture_output=True)


@pytest.mark.slow
def test_the_kernel_tells_of_a_real_failed_write_back(small_disk: Path) -> None:
    watch, lines = make(small_disk)
    assert not watch.is_suspect(1000.0)
    path = small_disk / "index" / "data.mdb"
    fd = os.open(path, os.O_RDWR)
    other = os.open(small_disk / "other", os.O_RDWR | os.O_CREAT)
    try:
        for at in range(0, 2 * SMALL, 4):
            os.pwrite(fd, os.urandom(4 << 20), at << 20)
        assert not write_back_failed(fd)
        os.system("sync")  # as the kernel does by itself, without notice
        assert not write_back_failed(other)
        assert not watch.is_suspect(1010.0)  # this disk does not even accept the note
        (line,) = lines
        assert line.startswith("warning: cannot note that the index is suspect: ")
        grow = ["mount", "-o", f"remount,size={2 * LARGE}M", str(small_disk.parent / "below")]
        subprocess.run(grow, check=True)
        assert watch.is_suspect(1020.0)
        assert reason(small_disk) == "the disk did not take what was written to it"
    finally:
        watch.close()
        os.close(fd)
        os.close(other)


def test_what_cannot_tell_has_not_failed(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    assert not write_back_failed(reader)
    os.close(reader)
    os.close(writer)
