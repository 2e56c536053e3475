"""Clients and operators of a cluster: mail and sessions at a node, cuts, deaths, new views."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import lmdb

from metad.cluster.alone import alone
from metad.errors import ClusterError, RefusedError
from metad.layers.base import Envelope, Incoming, NotAtHandError, Recipient
from tests.sim.cluster_judge import SENDER, ClusterJudge, address
from tests.sim.cluster_node import PIECE, ClusterHub
from tests.sim.network import Network
from tests.sim.plan import BOXES, Op
from tests.sim.scheduler import Owner
from tests.sim.worker import LostError, Worker
from tests.support.power_kit import MODES

PATIENCE_SECONDS = 20.0
# Messages from this size on arrive in pieces; some of them, of 256, are aborted.
LARGE = 1000
ABORTED = 30


class ClusterClients(Owner):
    """The outside world."""

    name = "clients"
    down_seconds = (3.0, 12.0)

    def __init__(self, hubs: Sequence[ClusterHub], network: Network, judge: ClusterJudge) -> None:
        super().__init__()
        self.hubs = hubs
        self.network = network
        self.judge = judge
        self.sim = network.sim

    def begin(self, op: Op) -> Any:
        """Start an operation; its task."""
        work = getattr(self, f"_{op.kind}")
        return self.sim.scheduler.spawn(op.kind, self, lambda: work(op))

    def hub(self, op: Op) -> ClusterHub:
        return self.hubs[op.slot % len(self.hubs)]

    def _worker(self, op: Op) -> Worker | None:
        hub = self.hub(op)
        if hub.is_member:
            self.sim.scheduler.wait(lambda: hub.worker(0) is not None, PATIENCE_SECONDS)
        return hub.worker(0)

    # -- mail in

    def _put(self, op: Op) -> None:
        worker = self._worker(op)
        if worker is None:
            return
        rng = random.Random(op.number)
        boxes = tuple(box for box in range(1, BOXES + 1) if op.box >> (box - 1) & 1)
        for _ in range(rng.choice((1, 1, 2, 5))):
            body = rng.randbytes(rng.choice((10, 300, 700, 1500)))
            try:
                self._send(worker, boxes, body, wait=rng.random() < 0.5)
            except RefusedError as error:
                self.sim.note(f"refused: {error!r}")
                return
            except LostError:
                return

    def _send(self, worker: Worker, boxes: tuple[int, ...], body: bytes, *, wait: bool) -> None:
        judge, layer = self.judge, worker.layer
        recipients = tuple(Recipient(box, address(box)) for box in boxes)
        answers: list[RefusedError | None] = []
        incoming = self._arrive(worker, boxes, body) if len(body) > LARGE else None
        if incoming is not None and body[0] < ABORTED:
            worker.call(incoming.abort)
            return

        def submit() -> None:
            message_id = layer.next_id()
            envelope = Envelope(message_id, "192.0.2.1", "h", SENDER, recipients, b"", len(body), 0)

            def done(error: RefusedError | None) -> None:
                answers.append(error)
                assert len(answers) == 1, "a message is answered twice"
                if error is None:
                    judge.acknowledged(message_id)
                else:
                    judge.refuse(message_id, self._node_of(worker))

            try:
                layer.check_space()
            except RefusedError:
                if incoming is not None:
                    incoming.abort()
                raise
            judge.sent(message_id, body, boxes)
            if incoming is None:
                layer.deliver(envelope, body, done)
            else:
                incoming.commit(envelope, done)

        worker.call(submit)
        if wait:
            worker.wait(lambda: bool(answers))

    def _node_of(self, worker: Worker) -> ClusterHub:
        return next(hub for hub in self.hubs if hub is worker.hub)

    def _arrive(self, worker: Worker, boxes: tuple[int, ...], body: bytes) -> Incoming:
        """A large message arrives in pieces, and streams to the other node meanwhile."""
        incoming: Incoming = worker.call(lambda: worker.layer.begin_for(boxes))
        for at in range(0, len(body), PIECE):
            self.sim.scheduler.pause(0.001 * body[1])
            worker.call(lambda at=at: incoming.write(body[at : at + PIECE]))  # type: ignore[misc]
        return incoming

    # -- sessions

    def _session(self, op: Op) -> None:
        worker = self._worker(op)
        if worker is not None:
            self.session(worker, self.hub(op), 1 + op.box % BOXES, random.Random(op.number))

    def session(
        self, worker: Worker, hub: ClusterHub, box: int, rng: random.Random, *, quits: bool = True
    ) -> list[tuple[bytes, int]] | None:
        """What was listed; None if it was refused."""
        if hub.durable_view().epoch < self.judge.alone_epoch:
            return None  # see there
        try:
            return Session(self, worker, hub.name, box, rng).run(quits=quits)
        except (RefusedError, ClusterError, lmdb.Error) as error:
            self.judge.failed(f"mailbox {box} at {hub.name}: {error!r}")
        except LostError:
            pass
        return None

    def delete_all(self, worker: Worker, hub: ClusterHub, box: int) -> None:
        """A session that deletes what it lists; it is not refused, or that is noted."""
        try:
            Session(self, worker, hub.name, box, random.Random(0)).delete_all()
        except (RefusedError, ClusterError, lmdb.Error) as error:
            self.judge.failed(f"mailbox {box} at {hub.name}: {error!r}")

    # -- the network

    def _part(self, op: Op) -> None:
        one = self.hub(op).node
        others = [hub.node for hub in self.hubs if hub.node != one]
        other = others[op.number // 3 % len(others)]
        both = op.number % 3 > 0
        self.sim.note(f"cut: {one} to {other}{' and back' if both else ''}")
        self.network.cut(one, other, both=both)

    def _mend(self, _: Op) -> None:
        self.sim.note("no cuts")
        self.network.heal()

    def _hold(self, op: Op) -> None:
        self.network.stall((0.5, 2.0, 6.0)[op.number % 3])

    def _freeze(self, op: Op) -> None:
        worker = self.hub(op).worker(0)
        if worker is not None:
            seconds = (0.5, 1.5, 8.0)[op.number % 3]
            self.sim.note(f"{worker.name} stands still for {seconds} s")
            self.sim.scheduler.stop(worker, seconds)

    def look_after(self) -> None:
        """What an operator does some seconds later."""

    def make_well(self) -> None:
        """Nothing is wrong with what connects the nodes."""
        self.network.heal()

    # -- views

    def _view(self, op: Op) -> None:
        """The member that decides about views makes another one, as if the operator had asked."""
        worker = self._worker(op._replace(slot=0))
        if worker is None:
            return
        number = 1 + op.number % 200

        def change() -> None:
            view = worker.layer.peers.view()
            members = [hub for hub in self.hubs if hub.is_member]
            if view.epoch >= max(hub.durable_view().epoch for hub in members):
                changed = view.changed(members=view.with_member(1, weight=number))
                worker.layer.proposals.propose(changed, self.sim.note)

        try:
            worker.call(change)
        except (LostError, ClusterError, OSError):
            return

    # -- starts and ends

    def _crash(self, op: Op) -> None:
        hub = self.hub(op)
        self.sim.note(f"kill -9 of {hub.name}")
        hub.crash()
        self.start(hub)

    def _power(self, op: Op) -> None:
        hub, rng = self.hub(op), random.Random(op.number)
        mode = rng.choice(MODES)
        self.sim.note(f"the power of {hub.name} is cut: {mode}")
        self._cut_power(hub, rng, mode)
        self.start(hub)

    def _cut_power(self, hub: ClusterHub, rng: random.Random, mode: str) -> None:
        self.network.power_fails(hub.node)
        hub.cut_power(rng, mode)

    def _down(self, op: Op) -> None:
        hub = self.hub(op)
        self.sim.note(f"{hub.name} is away")
        if op.number % 2:
            hub.crash()
        else:
            self._cut_power(hub, random.Random(op.number), "all")
        self.sim.scheduler.pause(self.down_seconds[op.number // 2 % 2])
        self.start(hub)

    def _alone(self, op: Op) -> None:
        """One node is off, the other goes on by command; later the first comes back."""
        hub = self.hub(op)
        other = next(one for one in self.hubs if one is not hub)
        worker = self._worker(op)
        if worker is None or hub.is_off or other.is_off:
            return
        if hub.durable_view().epoch < max(one.durable_view().epoch for one in self.hubs):
            return  # given here, the command would hide what the other has
        other.is_off = True
        self.sim.note(f"{other.name} is switched off")
        other.crash()
        try:
            worker.call(lambda: self.go_on_alone(worker, hub))
            self.sim.scheduler.pause((0.5, 4.0, 15.0)[op.number % 3])
        except (ClusterError, OSError, LostError) as error:
            self.sim.note(f"not alone: {error!r}")
        other.is_off = False
        self.start(other)

    def go_on_alone(self, worker: Worker, hub: ClusterHub) -> None:
        """What `metad cluster alone` does."""
        view = alone(worker.layer.peers.view(), hub.node)
        worker.layer.adopt(view)
        self.judge.alone_epoch = view.epoch
        self.sim.note(f"{hub.name} goes on alone in epoch {view.epoch}")

    def _stop(self, op: Op) -> None:
        hub = self.hub(op)
        master = hub.master
        if master is None:
            return
        self.sim.note(f"{hub.name} is stopped")
        master.stop()
        self.sim.scheduler.wait(lambda: master.dead, 300.0)
        if hub.master is master:
            hub.crash()
            self.start(hub)

    def start(self, hub: ClusterHub) -> None:
        if hub.master is not None or hub.is_off or not hub.is_member:
            return
        hub.start()
        master = hub.master
        assert master is not None
        self.sim.scheduler.wait(lambda: master.serving or master.dead)

    def _collect(self, op: Op) -> None:
        collector = self.hub(op).collector()
        if collector is None:
            return
        done: list[bool] = []

        def do(its: Any) -> None:
            its.collect(op.number, (1, 3, 8)[op.number % 3])
            done.append(True)

        collector.jobs.append(do)
        self.sim.scheduler.wait(lambda: bool(done) or collector.dead, 60.0)


class Session:
    """One POP3 session."""

    def __init__(
        self, clients: ClusterClients, worker: Worker, where: str, box: int, rng: random.Random
    ) -> None:
        self._judge = clients.judge
        self._scheduler = clients.sim.scheduler
        self._worker = worker
        self._where = f"at {where}"
        self._box = box
        self._rng = rng

    def run(self, *, quits: bool) -> list[tuple[bytes, int]]:
        """Raises RefusedError, LostError."""
        worker, rng, box = self._worker, self._rng, self._box
        seen = self._judge.before_login(box)
        drop = self._open()
        try:
            found = worker.call(lambda: _listing(drop))
            ids = [one for one, _ in found]
            self._judge.listed(self._where, box, ids, seen)
            for at in rng.sample(range(len(ids)), min(len(ids), rng.choice((0, 1, 3)))):
                self._fetch(drop, at + 1, *found[at])
            if quits:
                self._scheduler.pause(rng.choice((0.0, 0.0, 0.1, 3.0)))
                if rng.random() < 0.6:
                    self._quit(drop, ids)
        finally:
            if not worker.dead and not worker.loop.stopped:
                worker.loop.call_soon_threadsafe(drop.close)
        return found

    def _open(self) -> Any:
        outcomes: list[Any] = []
        worker = self._worker
        worker.call(lambda: worker.layer.open_later(self._box, outcomes.append))
        worker.wait(lambda: bool(outcomes))
        if isinstance(outcomes[0], Exception):
            raise outcomes[0]
        return outcomes[0]

    def _fetch(self, drop: Any, number: int, message_id: bytes, size: int) -> None:
        for _ in range(2):
            try:
                parts = self._worker.call(lambda: list(drop.fetch(number, 1 << 20)))
            except NotAtHandError:
                if error := self._answer(lambda done: drop.bring(number, done)):
                    self._judge.failed(f"RETR {message_id.hex()} {self._where}: {error!r}")
                    return
            else:
                self._judge.fetched(self._box, message_id, b"".join(map(bytes, parts)), size)
                return
        raise AssertionError("a message that was brought is not at hand")

    def delete_all(self) -> None:
        seen = self._judge.before_login(self._box)
        drop = self._open()
        ids = [one for one, _ in self._worker.call(lambda: _listing(drop))]
        self._judge.listed(self._where, self._box, ids, seen)
        self._delete(drop, ids, list(range(len(ids))))
        self._worker.loop.call_soon_threadsafe(drop.close)

    def _quit(self, drop: Any, ids: list[bytes]) -> None:
        share = self._rng.choice((0.3, 0.7, 1.0))
        numbers = [at for at in range(len(ids)) if self._rng.random() < share]
        if numbers:
            self._delete(drop, ids, numbers)

    def _delete(self, drop: Any, ids: list[bytes], numbers: list[int]) -> None:
        gone = [ids[at] for at in numbers]
        judge, box = self._judge, self._box
        judge.deleting(box, gone)

        def told(error: RefusedError | None) -> None:
            if error is None:
                judge.deleted(box, gone)
            else:
                judge.failed(f"QUIT {self._where}: {error!r}")

        self._answer(lambda done: drop.delete([at + 1 for at in numbers], done), told)

    def _answer(
        self, ask: Callable[[Callable[..., None]], None], told: Callable[..., None] | None = None
    ) -> RefusedError | None:
        answers: list[RefusedError | None] = []

        def done(error: RefusedError | None) -> None:
            answers.append(error)
            if told is not None:
                told(error)

        self._worker.call(lambda: ask(done))
        self._worker.wait(lambda: bool(answers))
        return answers[0]


def _listing(drop: Any) -> list[tuple[bytes, int]]:
    for _ in drop.list_messages():
        pass
    numbers = range(1, len(drop) + 1)
    found = [(bytes.fromhex(drop.uid(number)), drop.size(number)) for number in numbers]
    assert drop.octets == sum(size for _, size in found)
    return found
