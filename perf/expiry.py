"""The cost of the collector's scan of the mailboxes, and how long it makes others wait.

Makes a store and its users; scan once while nothing is old enough, and once while the older half of
all mail is.  Steps and write transactions are timed one by one.  The store is an index without
logs: this omits one read of the record for each deleted message.

    python -m perf.expiry [--messages 1000000] [--mailboxes 100000]

Prints the figures; writes perf/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metad.config import parse as config_parse
from metad.store import hub_time
from metad.store.gc.copy import Tools
from metad.store.gc.expiry import Expiry
from metad.store.gc.survivor_logs import SurvivorLogs
from metad.store.identity import open_store
from metad.store.ids import HubClock, IdMaker
from metad.store.index.index import Index
from metad.store.log_allocator import LogAllocator, LogSettings
from metad.store.log_table import LogTable
from metad.system.osio import Osio
from metad.users.database import UserDatabase
from metad.users.policy import Policies
from metad.workers.expiry_scan import ExpiryScan
from perf import harness
from perf.rebuild import LOG_SIZE, RESULTS, make_store
from perf.recovery import Shared, make_shared, recover


class TimedTools(Tools):
    """Tools that record how long each write transaction takes, including its lock."""

    def change(self, work: Any, *arguments: object) -> None:
        began = time.perf_counter()
        super().change(work, *arguments)
        TRANSACTIONS.append(time.perf_counter() - began)


TRANSACTIONS: list[float] = []


def prepare(data: Path, messages: int, mailboxes: int, shared: Shared) -> Index:
    store = make_store(data, messages, mailboxes, deleted=0.0)
    recover(store, shared)
    with UserDatabase(data / "users", create=True) as users:
        users.reserve(0)
        for _ in users.add_many(((f"box{n}@x.example", None) for n in range(mailboxes)), 20_000):
            pass
    return Index(store.index)


def make_scan(
    data: Path, index: Index, shared: Shared, seconds: int
) -> tuple[ExpiryScan, SurvivorLogs]:
    """`seconds`: the expiry of all users."""
    osio = Osio()
    store = open_store(osio, data)
    table = LogTable(shared.area, shared.semaphore, shared.area.process(1))
    hub_time.begin(osio, shared.area, 0)
    clock = HubClock(osio, shared.area.clock_cell)

    def make_source(generation: int) -> LogAllocator:
        settings = LogSettings(LOG_SIZE, generation=generation)
        return LogAllocator(osio, store, table, settings, clock, print)

    survivors = SurvivorLogs(make_source)
    tools = TimedTools(osio, store, index, table, survivors, IdMaker(clock, store.node).next, print)
    file = data / "metad.toml"
    file.write_text(f'hostname = "mx.example"\n[users]\nexpiry = "{seconds}s"\n')
    scan = ExpiryScan(data / "users", Policies(config_parse.load(file, data, {})), tools, clock)
    scan._expiry.__class__ = WithoutRecords
    return scan, survivors


def timed(steps: Iterator[object]) -> list[float]:
    """Seconds of each step."""
    found: list[float] = []
    while True:
        began = time.perf_counter()
        if next(steps, None) is None:
            return found
        found.append(time.perf_counter() - began)


def walk(scan: ExpiryScan, mailboxes: int) -> dict[str, Any]:
    TRANSACTIONS.clear()
    cpu = time.process_time()
    steps = timed(scan.scan(0.0))
    figures = {
        "seconds": round(sum(steps), 3),
        "cpu_s": round(time.process_time() - cpu, 3),
        "us_per_mailbox": round(sum(steps) / mailboxes * 1e6, 2),
        "expired": scan.figures.messages,
        "step_ms_p99": milliseconds(steps),
        "transactions": len(TRANSACTIONS),
    }
    if TRANSACTIONS:
        figures["transaction_ms_median"] = round(statistics.median(TRANSACTIONS) * 1000, 3)
        figures["transaction_ms_p99"] = milliseconds(TRANSACTIONS)
    return figures


def milliseconds(times: list[float]) -> float:
    """The 99th percentile."""
    return round(sorted(times)[int(len(times) * 0.99)] * 1000, 3)


class WithoutRecords(Expiry):
    """Trusts the id: there are no records here."""

    def _is_old(self, message_id: bytes, before: int) -> bool:
        return True


def measure(where: Path, messages: int, mailboxes: int) -> dict[str, Any]:
    data = where / "data"
    shared = make_shared()
    index = prepare(data, messages, mailboxes, shared)
    ids = [one for mailbox in range(2, 1002) for one in index.oldest(mailbox, 1000)]
    middle = sorted(int.from_bytes(one[:8], "big") for one in ids)[len(ids) // 2] // 1_000_000
    figures: dict[str, Any] = {"messages": messages, "mailboxes": mailboxes}
    expiries = {"nothing due": 10 * 366 * 86_400, "half due": int(time.time()) - middle}
    for name, seconds in expiries.items():
        scan, survivors = make_scan(data, index, shared, seconds)
        figures[name] = walk(scan, mailboxes)
        scan.close()
        survivors.seal()
    index.close()
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--mailboxes", type=int, default=100_000)
    arguments = parser.parse_args()
    with harness.directory() as where:
        figures = measure(where, arguments.messages, arguments.mailboxes)
        report = {
            "command": " ".join(["python", "-m", "perf.expiry", *sys.argv[1:]]),
            "machine": harness.machine(where),
            "figures": figures,
        }
    text = json.dumps(report, indent=1)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    name = f"expiry-{arguments.messages}-in-{arguments.mailboxes}-{time.strftime('%Y-%m-%d')}.json"
    (RESULTS / name).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
