"""The outside world: incoming mail, POP3 sessions, and the operator.

Each operation is a separate task and ends by itself; a client whose worker dies gets no answer.
The judge learns what is acknowledged, listed and deleted.
"""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import lmdb

from metad import limits
from metad.errors import BehindError, RefusedError
from metad.layers.base import Envelope, Recipient
from metad.store.backup.backup import Backup
from metad.store.backup_lock import LeaseLostError
from metad.store.gc.expiry import Due
from metad.store.index.index import LISTING_ENTRY
from tests.sim.collector import CollectorProcess
from tests.sim.hub import Hub
from tests.sim.judge import Judge
from tests.sim.plan import BOXES, Op
from tests.sim.process import Process
from tests.sim.scheduler import Owner
from tests.sim.users import LAST, remove_last
from tests.sim.worker import LostError, Worker
from tests.support.oracle import digest

PATIENCE_SECONDS = 20.0


class Clients(Owner):
    """The outside world of one hub."""

    name = "clients"

    def __init__(self, hub: Hub, judge: Judge) -> None:
        super().__init__()
        self.hub = hub
        self.sim = hub.sim
        self.judge = judge
        self.backups: list[BackupProcess] = []

    def begin(self, op: Op) -> Any:
        """Start an operation.  Returns its task."""
        work = getattr(self, f"_{op.kind}")
        return self.sim.scheduler.spawn(op.kind, self, lambda: work(op))

    def _worker(self, slot: int) -> Worker | None:
        """A worker, after waiting for one for a while."""
        self.sim.scheduler.wait(lambda: self.hub.worker(slot) is not None, PATIENCE_SECONDS)
        return self.hub.worker(slot)

    # -- mail in

    def _put(self, op: Op) -> None:
        worker = self._worker(op.slot)
        if worker is None:
            return
        rng = random.Random(op.number)
        boxes = [box for box in range(1, BOXES + 1) if op.box >> (box - 1) & 1]
        for _ in range(rng.choice((1, 1, 2, 6))):
            body = rng.randbytes(rng.choice((10, 300, 700, 1500)))
            if rng.random() < 0.3:
                worker.loop.call_soon_threadsafe(worker.layer.transaction_started)
            try:
                self._send(worker, boxes, body)
            except (RefusedError, LostError):
                return
            if rng.random() < 0.3:
                self.sim.scheduler.pause(0.01)

    def _send(self, worker: Worker, boxes: list[int], body: bytes) -> None:
        judge, layer = self.judge, worker.layer
        recipients = tuple(Recipient(box, f"u{box}@x") for box in boxes)

        def submit() -> bytes:
            message_id = layer.next_id()
            envelope = Envelope(message_id, "192.0.2.1", "h", "s@x", recipients, b"", len(body), 0)

            def done(error: RefusedError | None) -> None:
                if error is None:
                    judge.acknowledged(message_id, lagging=bool(layer.committer._feed.lagging))

            layer.check_space()
            judge.sent(message_id, digest(body), tuple(boxes))
            layer.deliver(envelope, body, done)
            return message_id

        worker.call(submit)

    # -- sessions

    def _session(self, op: Op) -> None:
        worker = self._worker(op.slot)
        if worker is None:
            return
        box = 1 + op.box % BOXES
        try:
            session = Session(self, worker, box, random.Random(op.number))
            session.run()
        except (RefusedError, LostError):
            pass

    # -- the operator

    def _collect(self, op: Op) -> None:
        most = (1, 1, 3, 8)[op.number % 4]
        self._ask_collector(lambda collector: collector.collect(op.number, most))

    def _expire(self, op: Op) -> None:
        """The older half of the mail of one mailbox."""
        box = 1 + op.box % BOXES
        self._ask_collector(lambda collector: self._expire_now(collector, box, op.number))

    def _expire_now(self, collector: CollectorProcess, box: int, number: int) -> None:
        ids = sorted(self.judge.known(box))
        if not ids:
            return
        before = int.from_bytes(ids[number % len(ids)][:8], "big")
        self.judge.expiring(box, before)
        # The record's time counts too, and it comes from the wall clock.
        collector.expire([Due(box, before)])

    def _scan(self, _: Op) -> None:
        self._ask_collector(lambda collector: collector.scan())

    def _remove(self, _: Op) -> None:
        """The last account, once."""
        if LAST in self.judge.removed:
            return
        self.judge.remove(LAST)
        self.sim.note(f"the user of mailbox {LAST} is removed")
        remove_last(self.hub.data / "users")

    def _ask_collector(self, job: Any) -> None:
        self.sim.scheduler.wait(lambda: self.hub.collector() is not None, PATIENCE_SECONDS)
        collector = self.hub.collector()
        if collector is None:
            return
        done: list[bool] = []

        def do(its: CollectorProcess) -> None:
            job(its)
            done.append(True)

        collector.jobs.append(do)
        self.sim.scheduler.wait(lambda: bool(done) or collector.dead, 60.0)

    def _backup(self, op: Op) -> None:
        if not self.hub.serving:
            return
        process = BackupProcess(self.hub, self.hub.free_row(), self.judge)
        self.backups.append(process)
        process.start()
        self.sim.scheduler.wait(lambda: process.dead)

    def _clock(self, op: Op) -> None:
        hours = (-48, -1, 1, 20, 24 * 400)[op.number % 5]
        self.sim.note(f"the wall clock jumps by {hours} hours")
        self.hub.clock.real += hours * 3600 * 10**9

    def _flip(self, op: Op) -> None:
        """The index loses an entry spontaneously, as by a flipped bit in its key."""
        victims = sorted(self.judge.visible_entries())
        if not victims or not self.hub.serving:
            return
        box, message_id = victims[op.number % len(victims)]
        worker = self._worker(op.slot)
        if worker is None:
            return
        key = box.to_bytes(4, "big") + message_id
        index = worker.layer.index
        self.sim.note(f"the index loses {message_id.hex()} of mailbox {box}")
        self.judge.flip()

        def lose() -> None:
            with index.writing() as txn:
                for table in index.tables.mailboxes:
                    txn.delete(key, db=table)

        with suppress(LostError, lmdb.Error):
            worker.call(lose)

    # -- starts and ends

    def _crash(self, _: Op) -> None:
        self.sim.note("kill -9 of the hub")
        self.hub.crash()
        self._start()

    def _cut(self, op: Op) -> None:
        rng = random.Random(op.number)
        mode = rng.choice(("none", "all", "prefix", "suffix", "half", "hole", "one"))
        self.sim.note(f"the power is cut: {mode}")
        self.hub.cut_power(rng, mode)
        self.judge.index_is_new()
        self._start()

    def _stop(self, _: Op) -> None:
        master = self.hub.master
        if master is None:
            return
        self.sim.note("the hub is stopped")
        master.stop()
        self.sim.scheduler.wait(lambda: master.dead, 300.0)
        self.hub.crash()
        self._start()

    def _start(self) -> None:
        self.hub.start()
        master = self.hub.master
        assert master is not None
        self.sim.scheduler.wait(lambda: master.serving or master.dead)


class Session:
    """One POP3 session: login, list, fetch some, perhaps QUIT with deletions."""

    def __init__(self, clients: Clients, worker: Worker, box: int, rng: random.Random) -> None:
        self._judge = clients.judge
        self._scheduler = clients.sim.scheduler
        self._worker = worker
        self._box = box
        self._rng = rng

    def run(self) -> None:
        worker, box = self._worker, self._box
        seen = self._judge.before_login(box)
        self._wait_for_mail()
        drop = worker.call(lambda: worker.layer.open_mailbox(box))
        steps = drop.list_messages()
        while worker.call(lambda: next(steps, "end")) != "end":
            pass
        uids = worker.call(lambda: [drop.uid(number) for number in range(1, len(drop) + 1)])
        ids = [bytes.fromhex(uid) for uid in uids]
        packed = worker.call(lambda: worker.layer.index.listing(box))
        there = {message_id for message_id, _ in LISTING_ENTRY.iter_unpack(packed)}
        self._judge.listed(box, ids, there - set(ids), seen)
        numbers = self._rng.sample(range(len(ids)), min(len(ids), self._rng.choice((0, 1, 3))))
        for number in numbers:
            self._fetch(drop, number + 1, ids[number])
        self._scheduler.pause(self._rng.choice((0.0, 0.0, 0.1, 3.0)))
        if self._rng.random() < 0.7:
            self._quit(drop, ids)
        worker.call(drop.close)

    def _wait_for_mail(self) -> None:
        """As metad.sessions.pop3_login does.  Raises RefusedError."""
        worker, asked_ns = self._worker, self._worker.osio.monotonic_ns()
        until = asked_ns + limits.BEHIND_PATIENCE * 1e9
        while worker.call(lambda: worker.layer.is_behind(self._box, asked_ns)):
            if worker.osio.monotonic_ns() > until:
                raise BehindError
            self._scheduler.pause(limits.BEHIND_RETRY_MOST)

    def _fetch(self, drop: Any, number: int, message_id: bytes) -> None:
        try:
            parts = self._worker.call(lambda: list(drop.fetch(number, 1 << 20)))
        except (RefusedError, lmdb.Error) as error:
            raise AssertionError(
                f"{message_id.hex()} is listed, and not to be had: {error}"
            ) from error
        self._judge.fetched(message_id, b"".join(map(bytes, parts[1:])))

    def _quit(self, drop: Any, ids: list[bytes]) -> None:
        share = self._rng.choice((0.3, 0.7, 1.0))
        numbers = [at for at in range(len(ids)) if self._rng.random() < share]
        if not numbers:
            return
        pairs = [(self._box, ids[at]) for at in numbers]
        self._judge.deleting(pairs)
        answers: list[RefusedError | None] = []

        def done(error: RefusedError | None) -> None:
            answers.append(error)
            if error is None:
                self._judge.deleted(pairs)

        self._worker.call(lambda: drop.delete([at + 1 for at in numbers], done))
        self._worker.wait(lambda: bool(answers))


class BackupProcess(Process):
    """`metad backup`, beside the hub.  `expected`: what must be in it."""

    role = "backup"

    def __init__(self, hub: Hub, row: Any, judge: Judge) -> None:
        super().__init__(hub, row)
        self.target = hub.data.parent / f"backup-{self.pid}"
        self._judge = judge
        self.expected: dict[int, set[bytes]] = {}
        self.gone: set[tuple[int, bytes]] = set()

    def work(self) -> int:
        before = {box: self._judge.acknowledged_in(box) for box in range(1, BOXES + 1)}
        self.gone = set(self._judge.ledger.deleted)
        try:
            Backup(self.osio, self.hub.store, self.target).run()
        except (OSError, LeaseLostError) as error:
            self.report(f"backup: {error}")
            return 1
        deleting = self._judge.ledger.deleting
        self.expected = {
            box: {one for one in ids if (box, one) not in deleting} for box, ids in before.items()
        }
        return 0
