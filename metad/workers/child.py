"""What every child of the master does first and last.

Rules of this file:

* After the fork: reset signals, drop the wakeup descriptor, ask to die with the parent and check
  that it has not died already, close what is not the child's, reseed `random`; then give up all
  files outside its places.
* A child that cannot start reports the reason to the master.
* A child exits by `os._exit`, with a code that says why.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import lmdb

from metad.errors import EX_IOERR, EX_OK, EX_SOFTWARE, MetadError, OsError, remedy_for
from metad.loglines import LogLines
from metad.system import landlock, privileges

# A child cannot start (no log, no index, no sockets): starting another at once would only loop.
EXIT_BOOT = 3
# What our exit codes mean, for log lines.
EXIT_WORDS = {EX_OK: "done", EXIT_BOOT: "cannot start", EX_SOFTWARE: "a bug", EX_IOERR: "I/O error"}
SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD, signal.SIGINT)
_WORD = 4096  # bytes of a message to the master: at most PIPE_BUF, so it is written whole


@dataclass(slots=True)
class ChildHandle:
    """What a child gets at its fork: its parent, what to close, and the pipe to the master."""

    parent: int
    close: Callable[[], None]
    word_fd: int
    name: str = "worker"
    places: Sequence[Path] = ()
    connects: bool = False
    reported: bool = False
    landlock: int = 0
    channel: socket.socket | None = None  # over which the master passes connections

    def ready(self) -> None:
        """Tell the master that this child is ready."""
        self._report(b"R")

    def fail(self, error: BaseException, code: int) -> None:
        """Tell the master why this child cannot start."""
        self._report(f"E{code} {_told(error)}".encode("utf-8", "replace")[:_WORD])

    def _report(self, word: bytes) -> None:
        if not self.reported:
            self.reported = True
            with suppress(OSError):
                os.write(self.word_fd, word)
                os.close(self.word_fd)


def _told(error: BaseException) -> str:
    """The error in one line, with what to do about it."""
    if isinstance(error, MetadError):
        return error.line
    remedy = remedy_for(error) if isinstance(error, OSError) else "the lines above show where"
    return f"{type(error).__name__}: {error} ({remedy})"


def describe(code: int) -> str:
    """An exit code or the negative number of a signal, for a log line."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code} ({EXIT_WORDS.get(code, 'see the log')})"


def run_child(handle: ChildHandle, main: Callable[[], int]) -> NoReturn:
    """The whole life of a forked child; never returns."""
    code = EX_SOFTWARE
    try:
        _begin(handle)
        code = main()
    except (MetadError, OSError, lmdb.Error) as error:
        code = EX_IOERR if handle.reported else EXIT_BOOT
        LogLines().line(handle.name, f"fatal: {error}")
        handle.fail(error, error.exit_code if isinstance(error, MetadError) else EX_IOERR)
    except BaseException as error:
        log = LogLines()
        log.line(handle.name, f"panic: {error!r}")
        for text in traceback.format_exc().splitlines():
            log.line(handle.name, text)
        handle.fail(error, EX_SOFTWARE)
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _begin(handle: ChildHandle) -> None:
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    # The master blocked them across the fork, so that none was lost between its handlers and ours.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if not privileges.die_with_parent(handle.parent, signal.SIGKILL):
        os._exit(EX_SOFTWARE)
    faulthandler.enable()
    handle.close()
    random.seed()
    if handle.places:
        try:
            handle.landlock = landlock.confine(handle.places, connects=handle.connects)
        except OSError as error:
            raise OsError(f"landlock: {error.filename or ''} {error.strerror}") from None
