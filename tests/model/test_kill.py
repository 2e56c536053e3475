"""Reliability row 2: the store's process is killed at a random moment, and recovered.

The child runs real threads and reports on a pipe what was acknowledged.
"""

from __future__ import annotations

import os
import pickle
import random
import select
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable

import pytest

from metad.errors import RefusedError
from metad.store.commit.committer import Committer
from metad.store.commit.index_feed import IndexFeed
from metad.store.ids import IdMaker
from metad.store.index.index import Index
from metad.store.log import record
from metad.store.log.encode import Append, append_deletion
from metad.store.log_allocator import LogAllocator, LogSettings
from metad.store.log_chain import LogChain
from metad.store.log_table import LogTable
from metad.store.unentered_mail import UnenteredMail
from tests.support import power_campaign
from tests.support.agreement import assert_agree, assert_rebuild_is_same
from tests.support.oracle import Ledger, digest
from tests.support.osio_kit import SEED, KitOsio
from tests.support.sizes import reached, sized
from tests.support.store_kit import BOUNDS, StoreKit

LOG_SIZE = 64 * 1024
BEGIN_SECONDS = 60.0


class QueueLoop:
    """A loop for real threads."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        self._there = threading.Semaphore(0)

    def call_soon(self, callback: Callable[[], object]) -> None:
        self._calls.append(callback)
        self._there.release()

    def call_later(self, _seconds: float, callback: Callable[[], object]) -> None:
        self.call_soon(callback)

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> None:
        self.call_soon(lambda: callback(*args))

    def step(self) -> None:
        self._there.acquire()
        self._calls.popleft()()


class Victim:
    """Runs in the child: mail in and out, endlessly."""

    def __init__(self, kit: StoreKit, pipe: int, slot: int, seed: int) -> None:
        self.pipe = pipe
        self.rng = random.Random(seed)
        self.loop = QueueLoop()
        osio = KitOsio()
        table = LogTable(kit.area, kit.semaphore, kit.area.process(slot))
        self.index = Index(kit.store.index, BOUNDS)
        self.source = LogAllocator(
            osio, kit.store, table, LogSettings(LOG_SIZE), kit.clock, lambda text: None
        )
        self.source.start()
        unentered = UnenteredMail(kit.area, slot)
        feed = IndexFeed(self.index, lambda rows: None, print, unentered=unentered)
        self.committer = Committer(self.loop, LogChain(self.source), feed)
        self.ids = IdMaker(kit.clock, 1)
        self.ids.start_life(self.committer.open_first())

    def say(self, what: str, value: object) -> None:
        data = pickle.dumps((what, value))
        os.write(self.pipe, len(data).to_bytes(4, "big") + data)

    def run(self) -> None:
        for _ in range(8):
            self.submit()
        while True:
            self.loop.step()

    def submit(self) -> None:
        if self.rng.random() < 0.2 and (
            listing := self.index.listing(box := self.rng.randrange(3))
        ):
            ids = [listing[at : at + 16] for at in range(0, len(listing), 20)]
            self.delete(box, self.rng.sample(ids, min(len(ids), 3)))
        else:
            self.put(self.rng.sample(range(3), 2), self.rng.randbytes(self.rng.randrange(4000)))

    def put(self, boxes: list[int], body: bytes) -> None:
        made = self.ids.next()
        recipients = tuple(record.Recipient(m, "", len(body)) for m in boxes)
        packed = record.pack_envelope(record.Envelope(0, "", "", "", recipients))
        self.say("sent", (made, digest(body), tuple(boxes)))
        done = self.done("acked", [made])
        self.committer.submit(Append(made, packed, (body,), len(body), done, recipients))

    def delete(self, box: int, ids: list[bytes]) -> None:
        deletion = record.Deletion(box, b"".join(ids))
        pairs = [(box, each) for each in ids]
        self.say("deleting", pairs)
        done = self.done("deleted", pairs)
        self.committer.submit(append_deletion(self.ids.next(), deletion, done))

    def done(self, what: str, value: object) -> Callable[[RefusedError | None], None]:
        def answered(error: RefusedError | None) -> None:
            if error is None:
                self.say(what, value)
            self.submit()

        return answered


def spawn(kit: StoreKit, slot: int, seed: int) -> tuple[int, int]:
    """Start a victim.  Returns its pid and the pipe on which it reports."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            Victim(kit, writer, slot, seed).run()
        finally:
            os._exit(1)
    os.close(writer)
    return child, reader


def listen(pipes: list[int], seconds: float, *, working: bool) -> dict[int, bytes]:
    """The victims' reports until they are killed.  `working`: time counts from the first report, so
    that on a busy machine they are not all killed while starting."""
    heard = dict.fromkeys(pipes, b"")
    if working:
        first = select.select(pipes, [], [], BEGIN_SECONDS)[0]
        assert first, "the victims do not begin"
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        for pipe in select.select(pipes, [], [], left)[0]:
            heard[pipe] += os.read(pipe, 1 << 16)
    return heard


def note_all(ledger: Ledger, heard: bytes) -> None:
    """Complete words only: the kill may cut the last one."""
    at = 0
    while at + 4 <= len(heard):
        size = int.from_bytes(heard[at : at + 4], "big")
        if at + 4 + size > len(heard):
            break
        ledger.apply(pickle.loads(heard[at + 4 : at + 4 + size]))
        at += 4 + size


def round_of_kills(kit: StoreKit, rng: random.Random) -> int:
    """Two writers run side by side; both are killed; the store is recovered and checked.

    Returns the number of messages acknowledged so far.
    """
    kit.recover()
    victims = [spawn(kit, slot, rng.randrange(1 << 30)) for slot in range(2)]
    pipes = [pipe for _, pipe in victims]
    heard = listen(pipes, rng.uniform(0, 0.03), working=rng.random() < 0.9)
    for pid, pipe in victims:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while more := os.read(pipe, 1 << 16):
            heard[pipe] += more
        os.close(pipe)
    words = sorted(heard.values(), key=len)
    for said in words:
        note_sent_first(kit.ledger, said)
    for said in words:
        note_all(kit.ledger, said)
    if rng.random() < 0.3:
        kit.drop_index()
    kit.recover()
    kit.open_index()
    kit.check()
    kit.crash()
    if rng.random() < 0.2:
        assert_agree(kit)
        assert_rebuild_is_same(kit)
    return len(kit.ledger.acked)


def note_sent_first(ledger: Ledger, heard: bytes) -> None:
    """One victim deletes messages that the other sent."""
    sent = Ledger()
    note_all(sent, heard)
    ledger.sent.update(sent.sent)


def campaign_of_kills(seed: int, rounds: int) -> int:
    data = power_campaign.scratch()
    rng = random.Random(seed)
    try:
        done = acked = 0
        while done < rounds:
            shutil.rmtree(data)
            with StoreKit(data, KitOsio(), size=LOG_SIZE) as kit:
                for _ in range(min(5, rounds - done)):
                    with power_campaign.blame(f"kill {done}, seed {seed}"):
                        count = round_of_kills(kit, rng)
                    done += 1
                acked += count
        return acked
    finally:
        shutil.rmtree(data, ignore_errors=True)


@pytest.mark.long
def test_no_kill_loses_or_revives_mail() -> None:
    rounds = sized(15, 500)
    acked = power_campaign.spread(lambda job: campaign_of_kills(SEED + job, rounds), 2)
    reached("row 2, kill -9 of a store's process: kills", 2 * 2 * rounds)
    reached("row 2, kill -9 of a store's process: messages acknowledged", acked)
    assert acked > 10 * rounds
