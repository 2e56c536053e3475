"""A whole run of a plan: its operations, then quiet, then the verdict on everything.

operations and faults -> no more faults, until the hub is at rest -> what is served is right
  -> a clean stop -> fsck is clean -> the index rebuilt is the same -> backups are whole
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metad.store.fsck.fsck import Fsck
from metad.store.fsck.fsck import Plan as FsckPlan
from metad.store.fsck.repair import rebuild_index
from metad.store.identity import Store, make_store
from metad.store.index.index import LISTING_ENTRY, Index
from metad.store.index.rows import unpack_places, unpack_references
from metad.store.log.place import Place
from metad.store.reader import Reader, Stored
from metad.store.recovery.hub import Recovery
from metad.system.osio import Osio
from tests.sim.clients import Clients
from tests.sim.hub import Hub
from tests.sim.judge import Judge
from tests.sim.plan import WAIT, Plan
from tests.sim.scheduler import Owner
from tests.sim.simulation import Simulation
from tests.support.oracle import show
from tests.support.power_campaign import scratch
from tests.support.store_kit import BOUNDS, SECRET

REST_SECONDS = 2.5
ALONE = ("crash", "cut", "stop")


class Run:
    """One plan, run once; `go` raises AssertionError, or whatever metad raises."""

    def __init__(self, plan: Plan, *, trace: bool = False) -> None:
        self.plan = plan
        self.trace: list[str] | None = [] if trace else None
        self.notes: list[str] = []
        self.steps = 0

    def go(self) -> None:
        base = scratch()
        try:
            with Simulation(self.plan) as sim:
                sim.scheduler.trace = self.trace
                self.notes = sim.notes
                try:
                    self._go(sim, base)
                finally:
                    self.steps = sim.scheduler.steps
        finally:
            shutil.rmtree(base)

    def _go(self, sim: Simulation, base: Path) -> None:
        hub = Hub(sim, base / "data")
        judge = Judge(hub)
        clients = Clients(hub, judge)
        hub.start()
        director = sim.scheduler.spawn("director", Owner(), lambda: direct(clients))
        sim.scheduler.run(lambda: director.ended)
        settle(clients)
        Verdict(hub, judge).give(clients)


def direct(clients: Clients) -> None:
    """The operations of the plan, begun one after another."""
    scheduler = clients.sim.scheduler
    hub = clients.hub
    scheduler.wait(lambda: hub.serving or (hub.master is None or hub.master.dead))
    for op in clients.sim.plan.ops:
        if hub.master is None or hub.master.dead:
            clients._start()
        task = clients.begin(op)
        if op.gap == WAIT or op.kind in ALONE:
            scheduler.wait(lambda task=task: task.ended)  # type: ignore[misc]
        else:
            for _ in range(op.gap):
                scheduler.point("gap")
    scheduler.wait(lambda: not clients.tasks, 3600.0)
    assert not clients.tasks, f"clients wait for ever: {[task.name for task in clients.tasks]}"


def settle(clients: Clients) -> None:
    """No more faults; until the hub is recovered, caught up, and idle for some seconds."""
    hub, sim = clients.hub, clients.sim
    sim.faults.off = True
    if clients.judge.flipped:
        hub.crash()
        hub.boots += 1  # so the index is rebuilt
        clients.judge.flipped = False
    if hub.master is None or hub.master.dead:
        hub.crash()
        hub.start()
    for _ in range(2):
        sim.scheduler.run(lambda: at_rest(hub))
        hub.collector().jobs.append(lambda collector: collector.collect(0, 0))  # it tidies up
        until = sim.clock.monotonic + int(REST_SECONDS * 1e9)
        sim.scheduler.run(lambda: sim.clock.monotonic >= until)  # noqa: B023
    assert at_rest(hub), "it does not come to rest"
    sim.scheduler.run(lambda: at_rest(hub) and threads_wait(hub))


def at_rest(hub: Hub) -> bool:
    master, collector = hub.master, hub.collector()
    if master is None or not master.serving or master.recovering or collector is None:
        return False
    workers = hub.workers()
    committers = [worker.log.committer for worker in workers]
    return (
        collector.idle
        and len(workers) == hub.slots
        and all(one.idle and not (one._feed.lagging or one._feed.answered) for one in committers)
    )


def threads_wait(hub: Hub) -> bool:
    """Whether no thread is within a job, and no worker's loop within a call.  One that is slow or
    stands still may be making a log, whose row is there before its file, or entering mail."""
    threads: list[Any] = [thread for process in hub.processes for thread in process.threads]
    return all(one.waits for one in (*threads, *(worker.loop for worker in hub.workers())))


class View:
    """What the oracle examines."""

    def __init__(self, index: Index, reader: Reader) -> None:
        self.index = index
        self._reader = reader

    def listing(self, mailbox: int) -> list[tuple[bytes, int]]:
        return list(LISTING_ENTRY.iter_unpack(self.index.listing(mailbox)))

    def stored(self, message_id: bytes, mailbox: int | None = None) -> Stored:
        found = self._reader.read(message_id, mailbox)
        assert found is not None
        return found


class Verdict:
    """On one hub at rest."""

    def __init__(self, hub: Hub, judge: Judge) -> None:
        self._hub = hub
        self._judge = judge

    def give(self, clients: Clients) -> None:
        self.give_store()
        for backup in clients.backups:
            if backup.code == 0:
                self._check_backup(backup)

    def give_store(self) -> None:
        hub = self._hub
        log = hub.workers()[0].log
        self._judge.ledger.check(View(log.index, log.reader))
        self._judge.look_at_table()
        self._stop()
        self._recover()  # logs that could not be sealed are ended now, as at the next start
        self._fsck()
        before = content(hub.store.index)
        rebuild_index(Osio(), hub.store, hub.boot, lambda text: None)
        self._compare(before, content(hub.store.index))
        self._check_store(hub.store)

    def _compare(self, kept: Content, made: Content) -> None:
        """The places of a message may be in another order, which no reader depends on: each place
        is read and verified in turn.  The first one determines which log counts it as live, so the
        counts are compared with the places of the same index.

        Without a cluster, only a move makes another place the first: the collector's copy is from
        then on, a rebuild prefers the log with the younger life.  So both remain if the collector
        could not free the log that it emptied."""
        for what, one, other in (
            ("entries", kept.entries, made.entries),
            ("places", kept.in_any_order(), made.in_any_order()),
            ("counts", kept.live(), kept.logs),
            ("counts", made.live(), made.logs),
        ):
            assert one == other, f"rebuilt {what} differ: {difference(one, other)}"
        if not self._hub.store.clustered:
            table = self._hub.table()
            for key, (_, places) in kept.places.items():
                is_moved = bool(places) and table.row(places[0].log).generation > 0
                first = made.places[key][1][:1]
                assert is_moved or places[:1] == first, f"{key.hex()}: first {places}, not {first}"

    def _stop(self) -> None:
        hub = self._hub
        master = hub.master
        assert master is not None
        master.stop()
        hub.sim.scheduler.run(lambda: master.dead)
        hub.crash()

    def _recover(self) -> None:
        hub = self._hub
        recovery = Recovery(Osio(), hub.store, lambda text: None, lambda path: Index(path, BOUNDS))
        recovery.run(hub.table(), hub.boot)

    def _fsck(self) -> None:
        said: list[str] = []
        Fsck(Osio(), self._hub.store, FsckPlan(self._hub.boot), said.append).run()
        assert not said, f"fsck: {said}"

    def _check_store(self, store: Store) -> None:
        index = Index(store.index, BOUNDS)
        reader = Reader(Osio(), store, index)
        try:
            self._judge.ledger.check(View(index, reader))
        finally:
            reader.close()
            index.close()

    def _check_backup(self, backup: Any) -> None:
        """The backup as a store of its own: what it must have, and what it must not."""
        target = backup.target
        for name in ("index", "locks", "spool", "run"):
            (target / name).mkdir()
        store = make_store(target, bytes(16), SECRET, 1)
        rebuild_index(Osio(), store, self._hub.boot, lambda text: None)
        index = Index(store.index, BOUNDS)
        reader = Reader(Osio(), store, index)
        view = View(index, reader)
        try:
            for box, expected in backup.expected.items():
                ids = {one for one, _ in view.listing(box)}
                assert expected <= ids, f"the backup lacks {show(expected - ids)} of {box}"
                back = {one for one in ids if (box, one) in backup.gone}
                assert not back, f"the backup has what was deleted: {show(back)}"
                for one in ids:
                    view.stored(one)
        finally:
            reader.close()
            index.close()


# -- the index as a whole


class Content(NamedTuple):
    """Entries, references and places of each message, and the logs' live messages and octets."""

    entries: dict[bytes, bytes]
    places: dict[bytes, tuple[int, list[Place]]]
    logs: dict[int, tuple[int, int]]

    def in_any_order(self) -> dict[bytes, tuple[int, list[Place]]]:
        return {one: (count, sorted(at)) for one, (count, at) in self.places.items()}

    def live(self) -> dict[int, tuple[int, int]]:
        """What `logs` must be by these places."""
        counts: dict[int, tuple[int, int]] = {}
        for references, places in self.places.values():
            if references:
                messages, octets = counts.get(places[0].log, (0, 0))
                counts[places[0].log] = messages + 1, octets + places[0].size
        return counts


def content(path: str) -> Content:
    """What an index has."""
    index = Index(path, BOUNDS)
    try:
        with index.reading() as txn:
            entries = {
                bytes(key): bytes(value)
                for table in index.tables.mailboxes
                for key, value in txn.cursor(table)
                if len(key) > 4
            }
            places = {
                bytes(key): (unpack_references(bytes(value)), unpack_places(bytes(value)))
                for key, value in txn.cursor(index.tables.places)
            }
        logs = {
            number: (row.live_messages, row.live_octets)
            for number, row in index.logs().items()
            if row.live_messages or row.live_octets
        }
        return Content(entries, places, logs)
    finally:
        index.close()


def difference(one: dict, other: dict) -> str:
    """The differences, in short."""

    def parts() -> Iterator[str]:
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                name = key.hex() if isinstance(key, bytes) else str(key)
                yield f"{name}: live {one.get(key)}, rebuilt {other.get(key)}"

    return "; ".join(list(parts())[:3])
