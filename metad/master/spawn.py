"""What the master's children are made of: code, configuration, sockets, and the files they keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from metad.config.model import Config
from metad.master.children import MASTER_ROW, ChildSpec
from metad.master.hub import Hub
from metad.master.worker_pool import Generation
from metad.system.shared_memory import Cell, ProcessRow, Role
from metad.workers import collector
from metad.workers import recovery as upkeep
from metad.workers import worker as mail
from metad.workers.child import ChildHandle


class Births:
    """Each method gives what `ChildTable.fork` takes, by the configuration of this moment."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def worker(self, slot: int, generation: Generation) -> ChildSpec:
        """A worker with its slot's sockets."""
        hub, config = self._hub, generation.config
        slots = config.store.workers
        mine = [
            (one.listener, sock) for one in generation.bound for sock in one.of_slot(slot, slots)
        ]

        def main(row: ProcessRow, birth: ChildHandle) -> int:
            keep = {sock.fileno() for _, sock in mine}
            for one in {*hub.bound, *generation.bound}:
                for sock in one.sockets:
                    if sock.fileno() not in keep:
                        sock.close()
            setup = mail.WorkerSetup(config, mine, hub.area, hub.semaphore, row, birth.ready)
            return mail.main(setup)

        return ChildSpec(Role.WORKER, slot, main, places(config), generation.number)

    def collector(self, done: int) -> ChildSpec:
        """The collector; `done` is the last round that was asked for and done."""
        hub = self._hub
        asked = hub.area.process(MASTER_ROW)

        def main(row: ProcessRow, birth: ChildHandle) -> int:
            row[Cell.ROUND] = done
            # Held here, they would stay open when a reload has closed them.
            for one in hub.bound:
                for sock in one.sockets:
                    sock.close()
            area, semaphore = hub.area, hub.semaphore
            return collector.main(
                collector.Setup(hub.config, area, semaphore, row, asked, birth.ready)
            )

        return ChildSpec(Role.COLLECTOR, 0, main, places(hub.config))

    def first_recovery(self) -> ChildSpec:
        setup = self._setup()
        return self._upkeep(lambda row: upkeep.recover_hub(setup, row))

    def recovery_of(self, dead: ProcessRow) -> ChildSpec:
        """Of the logs of a process that died."""
        setup = self._setup()
        return self._upkeep(lambda row: upkeep.recover_process(setup, row, dead.index))

    def closing(self) -> ChildSpec:
        """Notes that the index is clean."""
        setup = self._setup()
        return self._upkeep(lambda _: upkeep.close_index(setup))

    def _setup(self) -> upkeep.Setup:
        hub = self._hub
        return upkeep.Setup(hub.config.data, hub.area, hub.semaphore, hub.boot)

    def _upkeep(self, job: Callable[[ProcessRow], int]) -> ChildSpec:
        return ChildSpec(Role.RECOVERY, 0, lambda row, _: job(row), places(self._hub.config))


def places(config: Config) -> list[Path]:
    """The directories that a child keeps under Landlock; none: it is not confined."""
    return mail.places(config) if config.landlock else []
