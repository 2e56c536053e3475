"""What every child of the master does first and last.

Rules of this file:

* After the fork: signals reset, the wakeup descriptor dropped, `random` reseeded, what is not the
  child's closed; then a watch on the parent's death, and a look whether it came before the watch;
  then every file but those of its places is given up.
* A child that cannot begin says why, in words, to the master; nothing is left to be guessed.
* A child leaves by `os._exit`, with a code that says why.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import lmdb

from metad.errors import EX_IOERR, EX_OK, EX_SOFTWARE, MetadError, OsError
from metad.loglines import LogLines
from metad.system import landlock, privileges

# A child that cannot begin its work (no log, no index, no sockets): starting it again at once
# would only loop.
EXIT_BOOT = 3
# For people: what an exit code of ours means.
EXIT_WORDS = {EX_OK: "done", EXIT_BOOT: "cannot begin", EX_SOFTWARE: "a bug", EX_IOERR: "I/O error"}
SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD, signal.SIGINT)
_WORD = 4096  # octets of a last word: less than PIPE_BUF, so that it is one piece


@dataclass(slots=True)
class ChildHandle:
    """What a child is given at its fork: whom it serves, what to close, where its word goes."""

    parent: int
    close: Callable[[], None]
    word_fd: int
    name: str = "worker"
    places: Sequence[Path] = ()
    said: bool = False
    landlock: int = 0

    def ready(self) -> None:
        """Tell the master that this child is at work."""
        self._say(b"R")

    def fail(self, error: BaseException, code: int) -> None:
        """Tell the master why this child never will be."""
        text = str(error) if isinstance(error, MetadError) else f"{type(error).__name__}: {error}"
        self._say(f"E{code} {text}".encode("utf-8", "replace")[:_WORD])

    def _say(self, word: bytes) -> None:
        if not self.said:
            self.said = True
            with suppress(OSError):
                os.write(self.word_fd, word)
                os.close(self.word_fd)


def describe(code: int) -> str:
    """An exit code or the negative number of a signal, for a log line."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code} ({EXIT_WORDS.get(code, 'see the log')})"


def run_child(birth: ChildHandle, main: Callable[[], int]) -> None:
    """The whole life of a forked child; never returns."""
    code = EX_SOFTWARE
    try:
        _begin(birth)
        code = main()
    except (MetadError, OSError, lmdb.Error) as error:
        code = EX_IOERR if birth.said else EXIT_BOOT
        LogLines().line(birth.name, f"fatal: {error}")
        birth.fail(error, error.exit_code if isinstance(error, MetadError) else EX_IOERR)
    except BaseException as error:
        LogLines().line(birth.name, f"panic: {error!r}")
        traceback.print_exc()
        birth.fail(error, EX_SOFTWARE)
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _begin(birth: ChildHandle) -> None:
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    # The master blocked them over the fork: none is lost between its handlers and ours.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if not privileges.die_with_parent(birth.parent, signal.SIGKILL):
        os._exit(EX_SOFTWARE)
    faulthandler.enable()
    birth.close()
    random.seed()
    if birth.places:
        try:
            birth.landlock = landlock.confine(birth.places)
        except OSError as error:
            raise OsError(f"landlock: {error.filename or ''} {error.strerror}") from None
