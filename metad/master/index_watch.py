"""The master's eye on the index: a suspect one is rebuilt in the running hub.

    noted as suspect -> all children end -> recovery, as at a start -> new workers

Rules of this file:

* The master does not open the index: it looks for the file that the finder wrote.
* A child that a bad page of the index may have ended (SIGBUS, SIGSEGV) makes it suspect.
* The listening sockets stay open meanwhile: clients wait for the new workers.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from metad.master.children import Child, ChildTable
from metad.master.hub import Hub
from metad.store.index import state as index_state
from metad.system.osio import Osio
from metad.system.shared_memory import Role

LOOK_SECONDS = 1.0
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

    def is_suspect(self, now: float) -> bool:
        """Looks once a second; `now`: monotonic seconds."""
        if not self._has_logs or now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        reason = index_state.suspicion(Osio(), self._directory)
        if reason is not None:
            self._report(f"warning: the index is rebuilt: {reason}")
        return reason is not None

    def died(self, child: Child, code: int) -> None:
        """A child ended."""
        if not self._has_logs or -code not in (signal.SIGBUS, signal.SIGSEGV):
            return
        reason = f"{child.name} was killed by {signal.Signals(-code).name}"
        try:
            index_state.mark_suspect(Osio(), self._directory, reason)
        except OSError as error:
            self._report(f"warning: cannot note that the index is suspect: {error}")

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
