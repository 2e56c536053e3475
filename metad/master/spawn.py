"""How each kind of child is made: its code, configuration, sockets and files."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from metad import filters
from metad.config.model import Config
from metad.master.children import MASTER_ROW, ChildSpec
from metad.master.hub import Hub
from metad.master.worker_pool import Generation
from metad.monitor import process as monitor
from metad.system.shared_memory import Cell, ProcessRow, Role
from metad.workers import collector, recovery, worker
from metad.workers.child import ChildHandle


class ChildSpecs:
    """Each method returns what `ChildTable.fork` takes, by the current configuration."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def worker(self, slot: int, generation: Generation) -> ChildSpec:
        """A worker, with the sockets of its slot."""
        hub, config = self._hub, generation.config
        slots = config.store.workers
        mine = [
            (one.listener, sock) for one in generation.bound for sock in one.of_slot(slot, slots)
        ]

        def main(row: ProcessRow, handle: ChildHandle) -> int:
            keep = {sock.fileno() for _, sock in mine}
            for one in {*hub.bound, *generation.bound}:
                for sock in one.sockets:
                    if sock.fileno() not in keep:
                        sock.close()
            setup = worker.WorkerSetup(
                config, mine, hub.area, hub.semaphore, row, handle.ready, handle.channel
            )
            return worker.main(setup)

        connects = filters.connects(config) or config.cluster.address is not None
        number = generation.number
        return ChildSpec(Role.WORKER, slot, main, places(config), number, connects, channel=True)

    def collector(self, done: int) -> ChildSpec:
        """The collector.  `done`: the last requested round that was completed."""
        hub = self._hub
        asked = hub.area.process(MASTER_ROW)

        def main(row: ProcessRow, handle: ChildHandle) -> int:
            row[Cell.ROUND] = done
            # Kept here, they would stay open after a reload has closed them.
            for one in hub.bound:
                for sock in one.sockets:
                    sock.close()
            area, semaphore = hub.area, hub.semaphore
            return collector.main(
                collector.CollectorSetup(hub.config, area, semaphore, row, asked, handle.ready)
            )

        return ChildSpec(Role.COLLECTOR, 0, main, places(hub.config))

    def monitor(self, sock: socket.socket) -> ChildSpec:
        """The monitor, which serves metrics and health on `sock`."""
        hub = self._hub

        def main(row: ProcessRow, handle: ChildHandle) -> int:
            for one in hub.bound:
                for each in one.sockets:
                    each.close()
            return monitor.main(
                monitor.MonitorSetup(
                    hub.config, sock, hub.area, hub.semaphore, row, hub.started, handle.ready
                )
            )

        return ChildSpec(Role.MONITOR, 0, main, places(hub.config))

    def directory(self) -> ChildSpec:
        """The process that talks to etcd."""
        from metad.workers import directory

        hub = self._hub

        def main(row: ProcessRow, handle: ChildHandle) -> int:
            for one in hub.bound:
                for sock in one.sockets:
                    sock.close()
            setup = directory.DirectorySetup(hub.config, hub.area, row, handle.ready)
            return directory.main(setup)

        config = hub.config
        kept = [*places(config), *directory.places(config)] if config.landlock else []
        return ChildSpec(Role.DIRECTORY, 0, main, kept, connects=True)

    def first_recovery(self) -> ChildSpec:
        setup = self._setup()
        return self._upkeep(lambda row: recovery.recover_hub(setup, row))

    def recovery_of(self, dead: ProcessRow) -> ChildSpec:
        """Recovers the logs of a process that died."""
        setup = self._setup()
        return self._upkeep(lambda row: recovery.recover_process(setup, row, dead.index))

    def closing(self) -> ChildSpec:
        """Records that the index is clean."""
        setup = self._setup()
        return self._upkeep(lambda _: recovery.close_index(setup))

    def _setup(self) -> recovery.RecoverySetup:
        hub = self._hub
        config = hub.config
        return recovery.RecoverySetup(
            config.data, hub.area, hub.semaphore, hub.boot, config.log_format == "json"
        )

    def _upkeep(self, job: Callable[[ProcessRow], int]) -> ChildSpec:
        return ChildSpec(Role.RECOVERY, 0, lambda row, _: job(row), places(self._hub.config))


def places(config: Config) -> list[Path]:
    """The directories that a child keeps under Landlock; empty: it is not confined."""
    return worker.places(config) if config.landlock else []
