"""The master's control of children of which there is one, if the configuration wants it: the
monitor, and the directory process of a cluster."""

from __future__ import annotations

import signal
from collections.abc import Callable

from metad.errors import OsError
from metad.master.children import Child, ChildSpec, ChildTable
from metad.master.hub import Hub
from metad.master.spawn import ChildSpecs
from metad.master.worker_pool import Slot
from metad.workers.child import describe

Report = Callable[[str], None]


class SingleChild:
    """`spec()`: how it is made, None if there is to be none; `report(text)` writes to the log."""

    def __init__(
        self, children: ChildTable, name: str, spec: Callable[[], ChildSpec | None], report: Report
    ) -> None:
        self._children = children
        self._name = name
        self._spec = spec
        self._report = report
        self._slot = Slot(0)

    def manage(self, now: float) -> None:
        """Start it if there is none and its back-off is over.  `now`: monotonic seconds."""
        if self._slot.child is not None or now < self._slot.not_before:
            return
        spec = self._spec()
        if spec is None:
            return
        try:
            self._slot.child = self._children.fork(spec)
        except OsError as error:
            self._report(f"warning: {self._name}: {error}")
            self._slot.back_off(now, now)

    def died(self, child: Child, code: int, now: float) -> bool:
        """Whether it was this one."""
        if self._slot.child is not child:
            return False
        self._slot.child = None
        if code:
            why = f": {child.boot_error}" if child.boot_error else ""
            self._report(f"warning: {child.name} died: {describe(code)}{why}")
            self._slot.back_off(child.started, now)
        return True

    def renew(self) -> None:
        """Stop it; its successor gets the new configuration."""
        if self._slot.child is not None:
            self._slot.child.signal(signal.SIGTERM)


class SingleChildren:
    """All of them."""

    def __init__(self, hub: Hub, children: ChildTable, specs: ChildSpecs, report: Report) -> None:
        def monitor() -> ChildSpec | None:
            return specs.monitor(hub.monitor) if hub.monitor is not None else None

        def directory() -> ChildSpec | None:
            return specs.directory() if hub.config.cluster.etcd else None

        self._all = (
            SingleChild(children, "monitor", monitor, report),
            SingleChild(children, "directory", directory, report),
        )

    def manage(self, now: float) -> None:
        for one in self._all:
            one.manage(now)

    def died(self, child: Child, code: int, now: float) -> bool:
        return any(one.died(child, code, now) for one in self._all)

    def renew(self) -> None:
        for one in self._all:
            one.renew()
