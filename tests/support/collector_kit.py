"""A collector on a `StoreKit`'s store, without a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from metad.store.gc.collector import Collector, NotCollectableError
from metad.store.gc.copy import Tools
from metad.store.gc.survivor_logs import SurvivorLogs
from metad.store.ids import IdMaker
from metad.store.log_allocator import LogAllocator, LogSettings
from metad.store.log_table import LogState, LogTable
from tests.support.store_kit import StoreKit

ROW = 6  # the process row that the collector has


def make_collector(
    kit: StoreKit, failpoint: Callable[[str], None] = lambda name: None
) -> Collector:
    """The collector of an open store; its table and logs are its own."""
    table = LogTable(kit.area, kit.semaphore, kit.area.process(ROW))

    def make_source(generation: int) -> LogAllocator:
        settings = LogSettings(kit.size, kit.align, kit.sync, generation)
        return LogAllocator(kit.osio, kit.store, table, settings, kit.clock, kit.reports.append)

    ids = IdMaker(kit.clock, kit.store.node)
    tools = Tools(
        osio=kit.osio,
        store=kit.store,
        index=kit.index,
        table=table,
        survivors=SurvivorLogs(make_source),
        next_id=ids.next,
        report=kit.reports.append,
        failpoint=failpoint,
    )
    return Collector(tools)


def sealed(kit: StoreKit) -> list[int]:
    return [row.number for row in kit.table.rows() if row.state == LogState.SEALED]


def collect(collector: Collector, numbers: Iterable[int]) -> None:
    """Empty these logs."""
    for number in numbers:
        for _ in collector.collect(number):
            pass


def collect_all(kit: StoreKit, collector: Collector, *, youngest_first: bool = False) -> None:
    """Empty every log that is sealed now; one that says where another ends after that one."""
    left = sorted(sealed(kit), reverse=youngest_first)
    while left:
        later: list[int] = []
        for number in left:
            try:
                collect(collector, [number])
            except NotCollectableError:
                later.append(number)
        assert len(later) < len(left), f"logs {later} are not to be had"
        left = later


def fill_log(kit: StoreKit, mailbox: int = 1, size: int = 700, writer: int = 0) -> list[bytes]:
    """Messages until the writer's log is sealed and a new one in use; the ids in the old one."""
    committer = kit.writers[writer].committer
    kit.put([mailbox], b"first" + b"x" * size, writer)  # a first log may be taken lazily
    number = committer.writer.number
    ids: list[bytes] = []
    while committer.writer.number == number:
        ids.append(kit.put([mailbox], b"%d" % len(ids) + b"x" * size, writer).id)
    kit.background()
    return [each for each in ids if kit.index.places(each)[0].log == number]
