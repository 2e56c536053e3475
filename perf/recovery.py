"""The time to recover a killed hub's store whose index is kept: only tails are read.

Makes a store of some million messages in sealed logs (perf.rebuild), and lets two writers begin
reused logs, so that old records lie beyond the tail.  The writers are killed; then the recovery of
a hub runs in a separate process.  Each round writes and dies again.

    python -m perf.recovery [--messages 1000000] [--mailboxes 100000] [--rounds 5]

Prints seconds and the octets that recovery read; writes perf/results/.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import posix_ipc

from metad.store import hub_time
from metad.store.identity import Store
from metad.store.ids import HubClock, IdMaker
from metad.store.index import state as index_state
from metad.store.index.index import Index
from metad.store.index.rows import Batch
from metad.store.log import files as log_files
from metad.store.log import record
from metad.store.log.encode import Append, encode
from metad.store.log.header import ACTIVE, LogHeader
from metad.store.log.writer import LogWriter
from metad.store.log_allocator import LogAllocator, LogSettings
from metad.store.log_table import LogTable
from metad.store.recovery.hub import Recovery
from metad.system import shared_memory
from metad.system.osio import Osio
from metad.system.shared_memory import SharedArea
from perf import harness
from perf.rebuild import LOG_SIZE, RESULTS, make_store

WRITERS = 2
GROUP = 100


class CountingOsio(Osio):
    """Counts what is read."""

    octets = 0

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        data = super().pread(fd, count, offset)
        self.octets += len(data)
        return data


class Shared(NamedTuple):
    area: SharedArea
    semaphore: posix_ipc.Semaphore


def make_shared() -> Shared:
    name = f"/metad-perf-{secrets.token_hex(6)}"
    area = SharedArea.create(name)
    semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX, initial_value=1)
    area.unlink()
    return Shared(area, semaphore)


def in_process(work: Callable[[], Any]) -> Any:
    """The result of `work` in a process that dies immediately afterwards: nothing is closed or
    sealed."""
    ours, theirs = multiprocessing.Pipe()
    pid = os.fork()
    if pid == 0:
        try:
            theirs.send(work())
        finally:
            os._exit(0)
    theirs.close()
    answer = ours.recv()
    os.waitpid(pid, 0)
    return answer


def make_group(ids: IdMaker, mailboxes: int, deliver: bool = True) -> list[Append]:
    group = []
    for _ in range(GROUP):
        message_id = ids.next()
        recipients = (record.Recipient(random.randrange(mailboxes) + 2, "user@example.test", 700),)
        envelope = record.Envelope(0, "192.0.2.1", "client", "sender@example.test", recipients)
        packed = record.pack_envelope(envelope)
        entered = recipients if deliver else ()
        group.append(Append(message_id, packed, (b"x" * 700,), 700, lambda _: None, entered))
    return group


def make_used_logs(store: Store, first: int) -> None:
    """Free logs full of an earlier life's records."""
    osio = Osio()
    ids = IdMaker(HubClock(osio, osio.time_ns() - osio.boottime_ns()), store.node)
    for number in range(first, first + 2 * WRITERS):
        log = LogHeader(
            ACTIVE, 0, number, number, LOG_SIZE, 512, store.node, store.store_id, store.secret
        )
        writer = LogWriter(osio, log_files.create(osio, store.logs, log), log, sync=False)
        while True:
            group = make_group(ids, 1000, deliver=False)
            if not writer.fits(sum(item.size for item in group), 0):
                break
            encoded = encode(writer, group)
            writer.append([encoded.buffers[:800], encoded.buffers[800:]], encoded.size, b"")
        log_files.mark_free(osio, writer.fd, log)
        writer.close()


def recover(store: Store, shared: Shared) -> dict[str, float]:
    """The work of a hub's recovery child, timed."""
    osio = CountingOsio()
    table = LogTable(shared.area, shared.semaphore, shared.area.process(0))
    said: list[str] = []
    began = time.perf_counter()
    newest = Recovery(osio, store, said.append).run(table, index_state.boot_id())
    seconds = time.perf_counter() - began
    hub_time.begin(osio, shared.area, newest)
    return {"seconds": seconds, "octets_read": osio.octets, "rebuilt": len(said)}


def write(store: Store, shared: Shared, messages: int, mailboxes: int) -> int:
    """Two writers, by turns; they exit without closing anything.  Returns the number of messages
    written."""
    osio = Osio()
    clock = HubClock(osio, shared.area.clock_offset)
    index = Index(store.index)
    writers = []
    for slot in range(WRITERS):
        table = LogTable(shared.area, shared.semaphore, shared.area.process(slot + 1))
        source = LogAllocator(osio, store, table, LogSettings(LOG_SIZE), clock, print)
        source.start()
        writers.append((source, source.take(), IdMaker(clock, store.node)))
        writers[-1][2].start_life(writers[-1][1].life)
    for number in range(messages // GROUP):
        _, writer, ids = writers[number % WRITERS]
        encoded = encode(writer, make_group(ids, mailboxes))
        writer.append([encoded.buffers], encoded.size, encoded.entries)
        index.apply(Batch(writer.number, writer.life, writer.end, encoded.messages, []))
    return messages


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--mailboxes", type=int, default=100_000)
    parser.add_argument("--fresh", type=int, default=20_000, help="written before each kill")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", help="on the file system to measure")
    options = parser.parse_args()
    with harness.directory(options.directory) as where:
        result = measure(where, options)
    print(json.dumps(result, indent=1))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"recovery-{options.messages}-{time.strftime('%Y-%m-%d')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def one_round(store: Store, shared: Shared, options: argparse.Namespace) -> dict[str, float]:
    """Write, die, recover; a new master finds the old area gone, and fills the same one again."""
    in_process(lambda: write(store, shared, options.fresh, options.mailboxes))
    for at in range(1, shared_memory.CELLS):
        shared.area.cells[at] = 0
    figures: dict[str, float] = in_process(lambda: recover(store, shared))
    print(figures)
    return figures


def measure(where: Path, options: argparse.Namespace) -> dict[str, Any]:
    store = make_store(where / "data", options.messages, options.mailboxes)
    make_used_logs(store, 1 + len(os.listdir(store.logs)))
    shared = make_shared()
    in_process(lambda: recover(store, shared))
    rounds = [one_round(store, shared, options) for _ in range(options.rounds)]
    seconds = [each["seconds"] for each in rounds]
    return {
        "machine": harness.machine(where),
        "messages": options.messages,
        "mailboxes": options.mailboxes,
        "written_before_each_kill": options.fresh,
        "logs": len(os.listdir(store.logs)),
        "seconds": {"median": statistics.median(seconds), "all": seconds},
        "octets_read": [each["octets_read"] for each in rounds],
    }


if __name__ == "__main__":
    sys.exit(main())
