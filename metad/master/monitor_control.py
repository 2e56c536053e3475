"""The master's control of the monitor: one child, if the configuration has an address for it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

from metad.errors import OsError
from metad.master.children import Child, ChildSpec, ChildTable
from metad.master.hub import Hub
from metad.master.worker_pool import Slot
from metad.workers.child import describe


class MonitorControl:
    """`spec(sock)`: how the child is made; `report(text)` writes to the log."""

    def __init__(
        self,
        hub: Hub,
        children: ChildTable,
        spec: Callable[[socket.socket], ChildSpec],
        report: Callable[[str], None],
    ) -> None:
        self._sock = hub.monitor
        self._children = children
        self._spec = spec
        self._report = report
        self._slot = Slot(0)

    def manage(self, now: float) -> None:
        """Start it if there is none and its back-off is over.  `now`: monotonic seconds."""
        if self._sock is not None and self._slot.child is None and now >= self._slot.not_before:
            try:
                self._slot.child = self._children.fork(self._spec(self._sock))
            except OsError as error:
                self._report(f"warning: monitor: {error}")
                self._slot.back_off(now, now)

    def died(self, child: Child, code: int, now: float) -> bool:
        """Whether it was the monitor."""
        if self._slot.child is not child:
            return False
        self._slot.child = None
        if code:
            self._report(f"warning: {child.name} died: {describe(code)}")
            self._slot.back_off(child.started, now)
        return True

    def renew(self) -> None:
        """Stop it; its successor gets the new configuration."""
        if self._slot.child is not None:
            self._slot.child.signal(signal.SIGTERM)
