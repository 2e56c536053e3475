"""Runs something in a child, where a bad page does no harm.

LMDB reads its files through maps: a torn or truncated one may end the process by SIGBUS, SIGSEGV
or an abort.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, NoReturn

PIECE = 1 << 16


def reason_in_child(work: Callable[[], str | None]) -> str | None:
    """The fault found by `work`, or how it ended.  Raises OSError."""

    def tell(out: BinaryIO) -> None:
        out.write((work() or "").encode()[:4096])

    found: list[bytes] = []
    code = in_child(tell, found.append)
    if code < 0:
        return f"reading it ended the process ({signal.Signals(-code).name})"
    reason = b"".join(found).decode("utf-8", "replace")
    return reason or (f"reading it failed (exit code {code})" if code else None)


def in_child(work: Callable[[BinaryIO], None], take: Callable[[bytes], object]) -> int:
    """Run `work` in a child; `take` gets what it writes.  Returns the exit code, negative for a
    signal."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(work, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        while piece := pipe.read(PIECE):
            take(piece)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _child(work: Callable[[BinaryIO], None], writer: int) -> NoReturn:
    code = 1
    try:
        # No message from LMDB, no traceback, no core file.
        with suppress(OSError):  # a confined process, or one in a chroot, has no /dev/null
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with os.fdopen(writer, "wb", 0) as out:
            work(out)
        code = 0
    finally:
        os._exit(code)
