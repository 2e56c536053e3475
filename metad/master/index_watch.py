"""The master's watch of the index: a suspect one is rebuilt in the running hub.

    noted as suspect -> all children end -> recovery, as at a start -> new workers

Rules of this file:

* The master does not read the index: it looks for the file that the finder wrote.
* A child that a bad page of the index may have ended (SIGBUS, SIGSEGV, an abort of LMDB's) makes it
  suspect; a recovery that ended so is begun once more.
* The kernel writes the index back whenever it likes, and tells of a failure only those that ask.
  Then the page cache may be thrown away for what the disk has: the index is suspect.
* The listening sockets stay open meanwhile: clients wait for the new workers.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from metad.master.children import Child, ChildTable
from metad.master.hub import Hub
from metad.store.index import state as index_state
from metad.system.osio import Osio
from metad.system.shared_memory import Role
from metad.system.write_back import write_back_failed

LOOK_SECONDS = 1.0
# How a process may end that reads a bad page of LMDB's.
CRASHES = (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT)
# How long children may take to end before a rebuild.
GRACE_SECONDS = 5.0


class IndexWatch:
    """`report(text)` writes to the log."""

    def __init__(self, hub: Hub, report: Callable[[str], None]) -> None:
        self._directory = str(hub.config.data / "index")
        self._has_logs = hub.has_logs
        self._report = report
        self._looked = 0.0
        self._deadline = 0.0
        self._recovered_again = False
        self._unnoted = ""  # why the index is suspect, while the disk does not take it
        self._osio = Osio()
        self._file = -1  # the index's file, for the kernel to tell of write-back errors

    def is_suspect(self, now: float) -> bool:
        """Looks once a second; `now`: monotonic seconds."""
        if not self._has_logs or now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        self._look_at_write_back()
        if self._unnoted:
            self._mark(self._unnoted)
        reason = index_state.suspicion(self._osio, self._directory)
        if reason is not None:
            self._report(f"warning: the index is rebuilt: {reason}")
            self._recovered_again = False
        return reason is not None

    def died(self, child: Child, code: int) -> None:
        """A child ended."""
        if self._has_logs and _crashed(child, code):
            self._mark(f"{child.name} was killed by {signal.Signals(-code).name}")

    def recovers_again(self, child: Child, code: int) -> bool:
        """Whether another recovery is worth a try: the index is suspect since this one died."""
        again = not self._recovered_again and _crashed(child, code)
        self._recovered_again = True
        return again

    def _mark(self, reason: str) -> None:
        """Note it durably; tried again at each look where the disk does not take it."""
        try:
            index_state.mark_suspect(self._osio, self._directory, reason)
            self._unnoted = ""
        except OSError as error:
            if not self._unnoted:
                self._report(f"warning: cannot note that the index is suspect: {error}")
            self._unnoted = reason

    def _look_at_write_back(self) -> None:
        path = os.path.join(self._directory, index_state.DATA_FILE)
        with suppress(OSError):  # it is being replaced
            if self._file < 0 or not os.path.samestat(
                self._osio.fstat(self._file), self._osio.stat(path)
            ):
                self.close()
                self._file = self._osio.open(path, os.O_RDONLY)
        if self._file >= 0 and write_back_failed(self._file):
            self._mark("the disk did not take what was written to it")

    def close(self) -> None:
        if self._file >= 0:
            self._osio.close(self._file)
            self._file = -1

    def end_children(self, children: ChildTable, now: float) -> None:
        """Make all of them end at once; what they acknowledged is in their logs."""
        self._deadline = now + GRACE_SECONDS
        for child in children:
            child.killed = True
            child.signal(signal.SIGKILL if child.role == Role.RECOVERY else signal.SIGQUIT)

    def all_ended(self, children: ChildTable) -> bool:
        """Whether no child is left; those that take too long are killed."""
        if time.monotonic() > self._deadline:
            children.kill_all()
        return not len(children)


def _crashed(child: Child, code: int) -> bool:
    """Whether a bad page may have ended it; the watchdog aborts those that hang."""
    return -code in CRASHES and not (child.aborted and -code == signal.SIGABRT)
