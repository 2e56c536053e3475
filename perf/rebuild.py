"""The time to rebuild the index from seals alone, and the memory for it.

Makes a store of logs with true headers and true footers, whose records are holes in sparse files (a
rebuild reads no record of a sealed log), removes nothing else, and runs the recovery of a hub in a
separate process.  Later logs delete half of the messages of the previous day.

    python -m perf.rebuild [--messages 1000000] [--mailboxes 100000] [--rounds 3]

Prints seconds and the peak of anonymous memory, all processes together; writes perf/results/.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import secrets
import statistics
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import posix_ipc

from metad.store.identity import Store, open_or_make_store
from metad.store.index import state as index_state
from metad.store.index.index import Index
from metad.store.log import footer, header, record
from metad.store.log.header import LogHeader, log_path
from metad.store.log.writer import Footer, seal
from metad.store.log_table import LogTable
from metad.store.recovery.hub import Recovery
from metad.system.osio import Osio
from metad.system.shared_memory import SharedArea
from perf import harness

RESULTS = Path(__file__).parent / "results"
LOG_SIZE = 128 << 20
RECORD = 960  # octets of a message of 500 with header, envelope and trace
DELETED = 0.5
PER_LOG = (LOG_SIZE - (8 << 20)) // RECORD


def make_log(
    store: Store, number: int, count: int, mailboxes: int, gone: list[bytes]
) -> list[bytes]:
    """A sealed log of `count` messages that deletes those in `gone`; its entries' keys."""
    osio = Osio()
    life = 1_700_000_000 + number
    log = LogHeader(header.ACTIVE, 0, number, life, LOG_SIZE, 512, 1, store.store_id, store.secret)
    entries: list[bytes] = []
    keys: list[bytes] = []
    pack = footer.ENTRY.pack
    base = (1_700_000_000 + number * 600) * 1_000_000
    for n in range(count):
        message_id = struct.pack(">QHHI", base + n * 1000, 1, number & 0xFFFF, n)
        mailbox = random.randrange(mailboxes) + 2
        entries.append(pack(mailbox, message_id, 512 + n * RECORD, RECORD, 700, record.MESSAGE))
        keys.append(entries[-1][:20])
    end = 512 + count * RECORD
    for key in gone:
        mailbox = int.from_bytes(key[:4], "big")
        entries.append(pack(mailbox, key[4:], end, 100, 0, record.DELETION))
    fd = os.open(log_path(store.logs, number), os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, LOG_SIZE)
    header.write_first(osio, fd, log)
    seal(osio, fd, log, -(-(end + 100) // 512) * 512, Footer(b"".join(entries), count, 512))
    os.close(fd)
    return keys


def make_store(data: Path, messages: int, mailboxes: int, deleted: float = DELETED) -> Store:
    """A store in which each log deletes a share of the log before."""
    data.mkdir()
    store = open_or_make_store(Osio(), data)
    old: list[bytes] = []
    for number in range(1, -(-messages // PER_LOG) + 1):
        count = min(PER_LOG, messages - (number - 1) * PER_LOG)
        gone = [key for key in old if random.random() < deleted]
        old = make_log(store, number, count, mailboxes, gone)
    return store


class Figures(NamedTuple):
    """One rebuild: wall seconds, CPU seconds and peak of memory of all its processes, its rows."""

    seconds: float
    cpu: float
    peak: int
    rows: dict[str, int]


class Memory(threading.Thread):
    """Watches the anonymous memory of this process and its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.02):
            pids = [os.getpid(), *(int(p) for p in self._children())]
            self.peak = max(self.peak, sum(self._anonymous(pid) for pid in pids))

    @staticmethod
    def _children() -> list[str]:
        me = os.getpid()
        return Path(f"/proc/{me}/task/{me}/children").read_text().split()

    @staticmethod
    def _anonymous(pid: int) -> int:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return 0
        line = next((text for text in status.split("\n") if text.startswith("RssAnon")), "")
        return int(line.split()[1]) * 1024 if line else 0


def rebuild(store: Store, answer: Any) -> None:
    """The work of a hub's recovery child, timed."""
    name = f"/metad-perf-{secrets.token_hex(6)}"
    area = SharedArea.create(name)
    semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX, initial_value=1)
    area.unlink()
    memory = Memory()
    memory.start()
    began = time.perf_counter()
    table = LogTable(area, semaphore, area.process(0))
    Recovery(Osio(), store, print).run(table, index_state.boot_id())
    seconds = time.perf_counter() - began
    used = os.times()
    memory.done.set()
    memory.join()
    index = Index(store.index)
    totals = index.totals()
    index.close()
    cpu = sum(used[:4])
    answer.send(Figures(seconds, cpu, memory.peak, totals))


def one_round(store: Store) -> Figures:
    for name in os.listdir(store.index):
        os.unlink(os.path.join(store.index, name))
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=rebuild, args=(store, theirs))
    process.start()
    figures: Figures = ours.recv()
    process.join()
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--mailboxes", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", help="on the file system to measure")
    options = parser.parse_args()
    with harness.directory(options.directory) as where:
        store = make_store(where / "data", options.messages, options.mailboxes)
        rounds = [one_round(store) for _ in range(options.rounds)]
        seconds = [each.seconds for each in rounds]
        result = {
            "machine": harness.machine(where),
            "messages": options.messages,
            "mailboxes": options.mailboxes,
            "seconds": {"median": statistics.median(seconds), "all": seconds},
            "cpu_seconds_of_both_processes": [each.cpu for each in rounds],
            "peak_anonymous_octets": max(each.peak for each in rounds),
            "index": rounds[-1].rows,
        }
    print(json.dumps(result, indent=1))
    RESULTS.mkdir(exist_ok=True)
    name = f"rebuild-{options.messages}-in-{options.mailboxes}"
    path = RESULTS / f"{name}-{time.strftime('%Y-%m-%d')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
