"""kill -9 of a process that works on a store, at any of its writes."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from metad.system.osio import Buffer
from tests.support.osio_kit import KitOsio


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """On a tmpfs where there is one: kill -9 keeps what was written, synced or not."""
    fast = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="metad-test-", dir=fast) as name:
        yield Path(name)


class Killed(KitOsio):
    """Dies before its n-th change of a file."""

    def __init__(self, ordinal: int = 0) -> None:
        super().__init__()
        self.ordinal = ordinal
        self.count = 0
        self.armed = False

    def _step(self) -> None:
        if self.armed:
            self.count += 1
            if self.count == self.ordinal:
                os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, fd: int, data: Buffer, offset: int) -> int:
        self._step()
        return super()._write(fd, bytes(data), offset)

    def _sync(self, fd: int) -> None:
        self._step()
        super()._sync(fd)

    def unlink(self, path: str) -> None:
        self._step()
        super().unlink(path)

    def rename(self, old: str, new: str) -> None:
        self._step()
        super().rename(old, new)


def killed(data: Path, work: Callable[[Path], None]) -> bool:
    """Do `work` in a process of its own; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work(data)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return code != 0
