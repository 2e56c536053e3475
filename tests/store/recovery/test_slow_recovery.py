"""A recovery beside living processes that is slower than they are (docs/store-model.md)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from metad.store.log.header import LogHeader, log_path
from metad.store.log_table import LogState, LogTable, Row
from metad.store.recovery.headers import HeaderReader
from metad.store.recovery.hub import Plan, Recovery
from tests.support.collector_kit import ROW, collect_all, fill_log, make_collector, sealed
from tests.support.store_kit import StoreKit


def test_a_slow_recovery_sealed_the_next_life_of_a_log_with_its_old_header(tmp_path: Path):
    with StoreKit(tmp_path) as kit:
        kit.start()
        number = _seal_one_message(kit)
        recovery, plan = _begin_recovery(kit, number)
        _collect(kit, number)
        _fill_next_life(kit, number, plan.logs[number].seal_offset)
        acknowledged = [message_id for message_id, _ in kit.listing(2)]
        kit.writers.clear()
        kit.osio.close_all()  # kill -9 of the worker: the log's lock is free

        before = kit.index.log_counts(number)
        assert number not in recovery.recover_logs(kit.index, plan)

        assert kit.index.log_counts(number) == before
        kit.crash()
        kit.drop_index()
        kit.recover()
        kit.open_index()
        assert [message_id for message_id, _ in kit.listing(2)] == acknowledged
        assert all(kit.stored(message_id) for message_id in acknowledged)


def test_a_recovery_that_was_stopped_after_the_rows_takes_no_other_processes_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It read that a dead collector has a log; by the time it read the header, a worker had begun
    the log's next life, was answered from there, and died.  It moved the last group for the
    collector, and if it was killed too, no session waited for that mail."""
    with StoreKit(tmp_path) as kit:
        kit.start()
        number = _seal_one_message(kit)
        LogTable(kit.area, kit.semaphore, kit.area.process(ROW)).change(number, LogState.COLLECTING)
        headers_of = HeaderReader.of
        late: list[list[Row]] = []
        octets: list[bytes] = []

        def stopped_before(self: HeaderReader, numbers: Iterable[int]) -> dict[int, LogHeader]:
            if not late:
                _collect(kit, number)
                committer = kit.writers[0].committer
                while committer.writer is None or committer.writer.number != number:
                    fill_log(kit, 2)
                assert kit.submit([3], b"answered from its next life")
                kit.run()
                late.append(kit.table.rows())
                kit.writers.clear()
                kit.osio.close_all()  # kill -9 of the worker
                kit.index.close()
                octets.append(Path(log_path(kit.store.logs, number)).read_bytes())
            return headers_of(self, numbers)

        monkeypatch.setattr(HeaderReader, "of", stopped_before)
        Recovery(kit.osio, kit.store, kit.reports.append).recover_process(kit.table, ROW)

        (before,) = late
        assert Path(log_path(kit.store.logs, number)).read_bytes() == octets[0]
        assert [row[:5] for row in kit.table.rows()] == [row[:5] for row in before]
        Recovery(kit.osio, kit.store, kit.reports.append).recover_process(kit.table, 0)
        kit.open_index()
        assert kit.table.owned_by(0) == []
        assert len(kit.listing(3)) == 1


def _seal_one_message(kit: StoreKit) -> int:
    kit.put([1], b"a short first life")
    kit.writers[0].chain.retire()
    kit.background()
    (number,) = sealed(kit)
    return number


def _begin_recovery(kit: StoreKit, number: int) -> tuple[Recovery, Plan]:
    """A collector is killed with its victim, and the recovery has read the victim's header."""
    LogTable(kit.area, kit.semaphore, kit.area.process(ROW)).change(number, LogState.COLLECTING)
    recovery = Recovery(kit.osio, kit.store, kit.reports.append)
    return recovery, recovery._plan_process(kit.table, ROW, [number])


def _collect(kit: StoreKit, number: int) -> None:
    """The next collector tidies up, and empties the log as any other."""
    kit.delete(1, [message_id for message_id, _ in kit.listing(1)])
    collector = make_collector(kit)
    for _ in collector.tidy():
        pass
    collect_all(kit, collector)
    collector.close()
    assert kit.table.row(number).state == LogState.FREE


def _fill_next_life(kit: StoreKit, number: int, beyond: int) -> None:
    """The log is used again, and has acknowledged mail where its old seal was."""
    while kit.index.log_counts(number).watermark <= beyond:
        fill_log(kit, 2)
        assert kit.table.count(LogState.SEALED) < 20
