"""A store without a hub: opened in a directory, written, crashed and recovered by a test.

    with StoreKit(tmp_path) as kit:
        kit.recover()                 what the recovery child does at a start
        kit.open()                    what a worker does: index, reader, writer
        sent = kit.put([1, 2], b"...")
        kit.delete(1, [sent.id])
        kit.crash()  or  kit.stop()

Rules of this file:

* One thread: the background of log source and committer runs where the test says (`background`)
  or at every step (`eager`), so a run is the same each time.
* Everything goes through one `KitOsio`; a crash closes its descriptors and writes nothing.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import posix_ipc

from metad.errors import RefusedError
from metad.store import hub_time, identity
from metad.store.background import Job
from metad.store.commit.committer import Committer
from metad.store.commit.index_feed import IndexFeed
from metad.store.identity import Store
from metad.store.ids import HubClock, IdMaker
from metad.store.index import state as index_state
from metad.store.index.index import LISTING_ENTRY, Index
from metad.store.index.rows import LogCounts
from metad.store.log import record
from metad.store.log.encode import Append, Body, append_deletion
from metad.store.log_allocator import LogAllocator, LogSettings
from metad.store.log_chain import LogChain
from metad.store.log_table import LogTable
from metad.store.pending_deletions import PendingDeletions
from metad.store.reader import Reader, Stored
from metad.store.recovery.hub import Recovery
from metad.store.unentered_mail import UnenteredMail
from metad.system.osio import Osio
from metad.system.shared_memory import SharedArea
from tests.support.oracle import Ledger, digest
from tests.support.osio_kit import KitOsio

SECRET = bytes(range(32))
# Rows in the young levels of the mailboxes: so few that every run moves entries on all the time.
BOUNDS = (9,)
_serial = 0


def shared(name: str = "kit") -> tuple[SharedArea, posix_ipc.Semaphore]:
    """A new area and semaphore that leave nothing behind: unlinked as soon as they are made."""
    global _serial
    _serial += 1
    unique = f"/metad-test-{name}-{os.getpid()}-{_serial}"
    semaphore = posix_ipc.Semaphore(unique, posix_ipc.O_CREX, initial_value=1)
    semaphore.unlink()
    return SharedArea.unnamed(), semaphore


_area: tuple[int, SharedArea, posix_ipc.Semaphore] | None = None


def fresh_area() -> tuple[SharedArea, posix_ipc.Semaphore]:
    """This process's area, as new: what a master makes at each start."""
    global _area
    if _area is None or _area[0] != os.getpid():
        _area = (os.getpid(), *shared())
    _, area, semaphore = _area
    while semaphore.value < 1:  # the last holder was killed
        semaphore.release()
    cells = area.cells
    used = cells[9]
    for at in range(1, 32):
        cells[at] = 0
    logs = area.log_cells()
    for at in range((used + 2) * 8):
        logs[at] = 0
    for process in range(8):
        area.process(process).clear()
    return area, semaphore


class StepLoop:
    """An event loop that runs when it is told to."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()

    def call_soon(self, callback: Callable[[], object]) -> None:
        self._calls.append(callback)

    def call_later(self, _seconds: float, callback: Callable[[], object]) -> None:
        self._calls.append(callback)

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> None:
        self._calls.append(lambda: callback(*args))

    def run(self) -> None:
        while self._calls:
            self._calls.popleft()()


class Steps:
    """Replaces a thread: jobs are kept until requested, or run at once."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.kept: deque[Job] = deque()
        self._at_once = at_once

    def put(self, job: Job) -> None:
        if self._at_once:
            job()
        else:
            self.kept.append(job)

    def run(self) -> None:
        for _ in range(1000):
            if not self.kept:
                return
            self.kept.popleft()()
        raise AssertionError("the background does not come to rest")

    def stop(self) -> None:
        self.run()


class Sent:
    """The outcome of one append."""

    def __init__(self, record_id: bytes) -> None:
        self.id = record_id
        self.answered = False
        self.error: RefusedError | None = None

    @property
    def acked(self) -> bool:
        return self.answered and self.error is None


class KitWriter:
    """One writing process: table, source, committer."""

    def __init__(self, kit: StoreKit, slot: int) -> None:
        self.table = LogTable(kit.area, kit.semaphore, kit.area.process(slot))
        settings = LogSettings(kit.size, kit.align, kit.sync)
        self.source = LogAllocator(
            kit.osio, kit.store, self.table, settings, kit.clock, kit.reports.append
        )
        self.background = Steps()
        self.source.start(self.background)
        self.chain = LogChain(self.source)
        self.pending = PendingDeletions(kit.area, slot)
        self.unentered = UnenteredMail(kit.area, slot)
        self.feed = IndexFeed(
            kit.index, self._publish, kit.reports.append, self.pending.publish, self.unentered
        )
        at_once = Steps(at_once=True)
        self.committer = Committer(kit.loop, self.chain, self.feed, None, at_once)
        self.ids = IdMaker(kit.clock, kit.store.node)
        self.ids.start_life(self.committer.open_first())

    def _publish(self, rows: dict[int, LogCounts]) -> None:
        for number, counts in rows.items():
            self.table.set_live(number, counts.live_messages, counts.live_octets)
        writer = self.committer.writer
        if writer is not None:
            self.table.set_tail(writer.number, writer.end)


class StoreKit:
    """One store below `data`; see above."""

    def __init__(
        self,
        data: Path,
        osio: KitOsio | None = None,
        *,
        size: int = 32 * 1024,
        align: int = 512,
        sync: bool = True,
        eager: bool = True,
        clustered: bool = False,
    ) -> None:
        self.data = data
        self.osio = osio or KitOsio()
        self.size = size
        self.align = align
        self.sync = sync
        self.eager = eager
        self.boot = "boot-1"
        self.arrived_us = 0  # what records say of the time of arrival
        self.reports: list[str] = []
        self.ledger = Ledger()
        self.writers: list[KitWriter] = []
        self.loop = StepLoop()
        # What a filter makes of a message before it comes here, if there is one.
        self.shape: Callable[[bytes], list[bytes]] | None = None
        self._open = False
        self.store = make_identity(data, clustered=clustered)

    def __enter__(self) -> StoreKit:
        return self

    def __exit__(self, *exc: object) -> None:
        self.crash()

    # -- a life of the hub

    def recover(self) -> Recovery:
        """The steps before the first worker: new shared memory, all logs recovered."""
        self.area, self.semaphore = fresh_area()
        recovery = Recovery(self.osio, self.store, self.reports.append)
        self.table = LogTable(self.area, self.semaphore, self.area.process(7))
        greatest = recovery.run(self.table, self.boot)
        hub_time.begin(self.osio, self.area, greatest)
        self.clock = HubClock(self.osio, self.area.clock_cell)
        return recovery

    def open_index(self) -> None:
        self.index = Index(self.store.index, BOUNDS)
        self.reader = Reader(self.osio, self.store, self.index)
        self._open = True

    def open(self, writers: int = 1) -> None:
        self.open_index()
        for slot in range(writers):
            self.writers.append(KitWriter(self, slot))

    def start(self, writers: int = 1) -> Recovery:
        recovery = self.recover()
        self.open(writers)
        return recovery

    def stop(self) -> None:
        """A clean end: logs sealed, the index synced and marked clean."""
        for writer in self.writers:
            writer.source.stop(writer.committer.stop())
        self.writers.clear()
        if self._open:
            self.index.sync()
        self.crash()
        index_state.mark(Osio(), self.store.index, self.boot, clean=True)

    def crash(self) -> None:
        """The process is gone: nothing more is written, the kernel drops its locks."""
        self.writers.clear()
        self.loop = StepLoop()
        self.osio.close_all()
        if self._open:
            self._open = False
            self.index.close()

    def drop_index(self) -> None:
        shutil.rmtree(self.store.index)
        os.mkdir(self.store.index)

    # -- mail

    def submit(
        self,
        mailboxes: Sequence[int],
        body: bytes | Sequence[bytes] | Body,
        writer: int = 0,
        message_id: bytes = b"",
    ) -> Sent:
        """Hand a message over, whole, in parts or as if spooled; it is committed by `run`.

        With `message_id` it is a copy of another node's.
        """
        its = self.writers[writer]
        sent = Sent(message_id or its.ids.next())
        if self.shape is not None and isinstance(body, bytes):
            body = self.shape(body)
        parts = (body,) if isinstance(body, bytes) else body if isinstance(body, list) else None
        octets = b"".join(map(bytes, parts or body.chunks()))
        recipients = tuple(record.Recipient(m, f"u{m}@x", len(octets) + m) for m in mailboxes)
        envelope = record.Envelope(self.arrived_us, "192.0.2.1", "h", "s@x", recipients)
        self._note("sent", (sent.id, digest(octets), tuple(mailboxes)))

        def done(error: RefusedError | None) -> None:
            self._answer(sent, error, "acked", [sent.id])

        packed = record.pack_envelope(envelope)
        item = Append(sent.id, packed, parts, len(octets), done, recipients)
        if parts is None:
            item.spooled = body  # type: ignore[assignment]
        its.committer.submit(item)
        return sent

    def submit_deletion(self, mailbox: int, ids: Sequence[bytes], writer: int = 0) -> Sent:
        its = self.writers[writer]
        sent = Sent(its.ids.next())
        deletion = record.Deletion(mailbox, b"".join(ids))
        pairs = [(mailbox, each) for each in ids]
        self._note("deleting", pairs)

        def done(error: RefusedError | None) -> None:
            self._answer(sent, error, "deleted", pairs)

        its.committer.submit(append_deletion(sent.id, deletion, done))
        return sent

    def _answer(self, sent: Sent, error: RefusedError | None, what: str, value: object) -> None:
        assert not sent.answered, "answered twice"
        sent.answered = True
        sent.error = error
        if error is None:
            self._note(what, value)

    def _note(self, what: str, value: object) -> None:
        self.ledger.apply((what, value))
        if self.osio.recording:
            self.osio.note((what, value))

    def run(self) -> None:
        """Run until everything submitted has its answer."""
        self.loop.run()
        if self.eager:
            self.background()

    def background(self) -> None:
        for writer in self.writers:
            writer.background.run()

    def put(
        self, mailboxes: Sequence[int], body: bytes | Sequence[bytes] | Body, writer: int = 0
    ) -> Sent:
        sent = self.submit(mailboxes, body, writer)
        self.run()
        assert sent.answered
        return sent

    def delete(self, mailbox: int, ids: Sequence[bytes], writer: int = 0) -> Sent:
        sent = self.submit_deletion(mailbox, ids, writer)
        self.run()
        assert sent.answered
        return sent

    # -- looking

    def listing(self, mailbox: int) -> list[tuple[bytes, int]]:
        for writer in self.writers:  # as a session waits for it
            writer.committer.enter_now()
        return list(LISTING_ENTRY.iter_unpack(self.index.listing(mailbox)))

    def stored(self, message_id: bytes, mailbox: int | None = None) -> Stored:
        found = self.reader.read(message_id, mailbox)
        assert found is not None
        return found

    def check(self) -> int:
        return self.ledger.check(self)

    def log_files(self) -> Iterator[Path]:
        yield from sorted(Path(self.store.logs).glob("*.log"))


def make_identity(data: Path, node: int = 1, *, clustered: bool = False) -> Store:
    """A store with a secret that is the same each time, so that a run can be repeated."""
    if not (data / "store.json").exists():
        data.mkdir(exist_ok=True, parents=True)
        (data / "logs").mkdir()
        made = identity.make_store(data, bytes(16), SECRET, node, clustered=clustered)
        identity.write_identity(Osio(), made)
    return identity.open_or_make_store(Osio(), data)
