"""The operators of a cluster with etcd, and what befalls its etcd and its nodes' way to it."""

from __future__ import annotations

import random
from contextlib import suppress
from copy import deepcopy
from typing import cast

from metad.cluster import etcd as real_etcd
from metad.cluster.removing import Removal, without
from metad.cluster.restoring import restore
from metad.cluster.view import Member, Membership
from metad.errors import ClusterError, RefusedError
from tests.cluster.views import make_member
from tests.sim.cluster_clients import ClusterClients
from tests.sim.cluster_node import ClusterHub
from tests.sim.etcd import LATENCY_SECONDS, Etcd, NodeEtcd, drive
from tests.sim.plan import BOXES, Op
from tests.sim.worker import LostError, Worker

COPIES = 2
JOIN_TRIES = 5
REMOVE_TRIES = 8
SET_RIGHT_TRIES = 3
DOWN_PATIENCE = 30.0
FROZEN_SECONDS = 15.0


def is_away(member: Member) -> bool:
    return member.state in (Membership.ABSENT, Membership.REMOVED)


class EtcdClients(ClusterClients):
    """As without etcd; nodes come and go by themselves."""

    down_seconds = (3.0, 30.0)

    @property
    def etcd(self) -> Etcd:
        etcd = self.hubs[0].etcd
        assert etcd is not None
        return etcd

    # -- cut off

    def _isolate(self, op: Op) -> None:
        """A node reaches no other, and etcd perhaps."""
        node = self.hub(op).node
        self.sim.note(f"node {node} is cut off{' from all' if op.number % 2 else ''}")
        for hub in self.hubs:
            if hub.node != node:
                self.network.cut(node, hub.node)
        if op.number % 2:
            self.etcd.cuts.add(node)
        self.sim.scheduler.pause((5.0, 15.0, 30.0)[op.number // 2 % 3])
        self._mend(op)

    def _mend(self, op: Op) -> None:
        super()._mend(op)
        self.etcd.cuts.clear()

    def _blind(self, op: Op) -> None:
        node = self.hub(op).node
        self.sim.note(f"node {node} does not reach etcd")
        self.etcd.cuts.add(node)

    def _settle(self, op: Op) -> None:
        self._mend(op)
        self.sim.scheduler.pause((4.0, 10.0, 20.0)[op.number % 3])

    def _freeze(self, op: Op) -> None:
        """A process stands still, or the whole machine."""
        if op.number // 3 % 2:
            super()._freeze(op)
            return
        hub, seconds = self.hub(op), (1.5, 8.0, 14.0)[op.number % 3]
        self.sim.note(f"{hub.name} stands still for {seconds} s")
        for process in hub.processes:
            self.sim.scheduler.stop(process, seconds)

    # -- etcd itself

    def _away(self, op: Op) -> None:
        etcd = self.etcd
        if op.number % 2:
            self.sim.note("etcd is stopped")
            etcd.is_down = True
        else:
            self.sim.note("etcd is slow")
            etcd.latency = 1.0
        self.sim.scheduler.pause((2.0, 8.0, 20.0)[op.number // 2 % 3])
        etcd.is_down, etcd.latency = False, LATENCY_SECONDS

    def _back(self, op: Op) -> None:
        """Wiped, or an old snapshot, unless a node has not yet seen that a later one existed."""
        store = self.etcd.store
        newest = store.view
        if newest is None:
            return
        snapshot = random.Random(op.number).choice(store.history)
        seen = [hub.seen() for hub in self.hubs if hub.is_member]
        if op.number % 2 and all(one is not None and one.epoch == newest.epoch for one in seen):
            self.sim.note("etcd is restored from an old snapshot")
            store.roll_back(deepcopy(snapshot))
        else:
            self.sim.note("etcd is wiped")
            store.wipe()
        self.sim.scheduler.pause(FROZEN_SECONDS)
        self.set_right()

    def set_right(self) -> None:
        """`metad cluster restore-directory`, on the node with the greatest epoch."""
        members = [hub for hub in self.hubs if hub.is_member]
        best = max(members, key=lambda hub: hub.durable_view().epoch)
        if self.etcd.store.view is None:
            self.etcd.store.views_are_lost(best.durable_view().epoch)
        way = cast(real_etcd.Etcd, NodeEtcd(self.etcd, best.node))
        try:
            done = drive(restore(way, best.durable_view(), best.seen(), best.node))
        except ClusterError as error:
            self.sim.note(f"etcd is not set right: {error}")
        else:
            self.sim.note(f"etcd is set right, with epoch {done[1].epoch}")

    @property
    def is_frozen(self) -> bool:
        seen = [hub.seen() for hub in self.hubs if hub.is_member]
        return self.etcd.store.view is None or any(one and one.frozen for one in seen)

    def make_well(self) -> None:
        super().make_well()
        etcd = self.etcd
        etcd.cuts.clear()
        etcd.held.clear()
        etcd.is_down, etcd.latency = False, LATENCY_SECONDS
        if self.is_frozen:
            self.set_right()
        for hub in self.hubs:
            if not (hub.is_member or hub.is_lost):
                self._is_in(hub)

    def look_after(self) -> None:
        """The command once more if a node still does not trust what was set right: it had seen a
        later restoration than the node on which the command was given."""
        for _ in range(SET_RIGHT_TRIES):
            self.sim.scheduler.pause(5.0)
            if not self.is_frozen:
                return
            self.set_right()

    # -- machines

    def _join(self, op: Op) -> None:
        """`metad cluster join` on a new machine: the member that takes it in proposes the view."""
        spare = next((hub for hub in self.hubs if not (hub.is_member or hub.is_lost)), None)
        worker = self._worker(op) if self.hub(op).is_member else None
        if spare is None or worker is None:
            return
        for _ in range(JOIN_TRIES):
            try:
                if self._is_in(spare):
                    return
                self._propose_join(worker, spare)
            except LostError:
                return
            self.sim.scheduler.pause(1.0)

    def _is_in(self, spare: ClusterHub) -> bool:
        """If some member has a view with the new node, that is what it gets.  Once: its disk may be
        lost again while it starts."""
        for hub in self.hubs:
            if spare.is_member or spare.is_lost:
                break
            view = hub.durable_view() if hub.is_member else None
            if view is not None and view.member(spare.node) is not None:
                self.sim.note(f"{spare.name} has joined")
                spare.join(view)
                self.start(spare)
        return spare.is_member or spare.is_lost

    def _propose_join(self, worker: Worker, spare: ClusterHub) -> None:
        told: list[str] = []
        layer = worker.layer

        def propose() -> None:
            view = layer.peers.view()
            if view.member(spare.node) is not None:  # by an earlier request
                told.append("")
                return
            member = make_member(spare.node, Membership.ENTERING, healed=True)
            members = tuple(sorted((*view.members, member), key=lambda one: one.number))
            layer.proposals.propose(view.changed(members=members), told.append)

        worker.call(propose)
        worker.wait(lambda: bool(told))

    def _lose(self, op: Op) -> None:
        """A disk is lost for good, at most one at a time and while all others serve.  Once the rest
        has its mail, `metad cluster remove`."""
        hub = self.hub(op)
        if not self.sim.scheduler.look_for(lambda: self._may_lose(hub), DOWN_PATIENCE):
            return
        self.sim.note(f"the disk of {hub.name} is lost")
        self._take_disk(hub)
        self._give_up(hub, op.number)

    def _old(self, op: Op) -> None:
        """A disk is copied, mail comes and goes, and the machine runs with the copy; then it is
        removed.  In half of the cases another one is off meanwhile: those that are left must not
        believe the copy."""
        hub = self.hub(op)
        look_for = self.sim.scheduler.look_for
        if not look_for(lambda: self._may_lose(hub), DOWN_PATIENCE):
            return
        copy = hub.data.with_name(f"copy-{self.sim.scheduler.steps}")
        self.sim.note(f"the disk of {hub.name} is copied")
        hub.crash()
        hub.copy_disk(copy)
        self.start(hub)
        self._use_all(random.Random(op.number))
        if not look_for(lambda: self._may_lose(hub), DOWN_PATIENCE):
            return
        self.sim.note(f"{hub.name} gets an old disk")
        self._take_disk(hub)
        hub.restore_disk(copy)
        rest = self._others(hub)
        off = rest[op.number // 6 % len(rest)] if op.number // 3 % 2 else None
        if off is not None:
            self.sim.note(f"{off.name} is off")
            off.crash()
        hub.start()
        self.sim.scheduler.pause((2.0, 8.0, 20.0)[op.number % 3])
        for one in [one for one in rest if one is not off]:
            self._look(one)
        hub.crash()
        if off is not None:
            self.start(off)
        self._give_up(hub, op.number)

    def _use_all(self, rng: random.Random) -> None:
        """Mail for every mailbox at each node, and a session that deletes."""
        boxes = tuple(range(1, BOXES + 1))
        for hub in self.hubs:
            worker = hub.worker(0)
            if not hub.is_member or worker is None:
                continue
            with suppress(RefusedError, LostError):
                self._send(worker, boxes, rng.randbytes(100), wait=True)
                self.delete_all(worker, hub, rng.choice(boxes))

    def _look(self, hub: ClusterHub) -> None:
        """Into every mailbox."""
        for box in range(1, BOXES + 1):
            if (worker := hub.worker(0)) is not None:
                self.session(worker, hub, box, random.Random(box), quits=False)

    def _take_disk(self, hub: ClusterHub) -> None:
        hub.crash()
        self.judge.disk_is_lost(hub)
        hub.is_member, hub.is_lost = False, True

    def _give_up(self, hub: ClusterHub, number: int) -> None:
        """`metad cluster remove`, once the others have its mail."""
        rest = self._others(hub)
        for _ in range(REMOVE_TRIES):
            self.sim.scheduler.pause(5.0)
            if self.remove(rest[number % len(rest)], hub.node):
                return

    def _others(self, hub: ClusterHub) -> list[ClusterHub]:
        return [one for one in self.hubs if one.is_member and one is not hub]

    def _may_lose(self, hub: ClusterHub) -> bool:
        rest = self._others(hub)
        if not hub.is_member or len(rest) < COPIES:
            return False
        newest = max((one.durable_view() for one in rest), key=lambda view: view.epoch)
        lost = [newest.member(one.node) for one in self.hubs if one.is_lost]
        waits = any(one is not None and not (one.healed and is_away(one)) for one in lost)
        serve = {one.node for one in rest} <= set(newest.active)
        has_copies = newest.read_copies >= COPIES  # of old mail, too
        return serve and has_copies and not newest.unhealed and not waits

    def remove(self, by: ClusterHub, number: int, *, is_lossy: bool = False) -> bool:
        """What `metad cluster remove` does on a node.  Whether the other is removed."""
        directory, worker = by.directory(), by.worker(0)
        if directory is None or directory.directory is None or worker is None:
            return False
        answering = {
            hub.node
            for hub in self.hubs
            if hub.worker(0) is not None and not self.network.cuts & {(by.node, hub.node)}
        }
        told: list[str] = []
        leased = directory.directory.leased()

        def remove() -> None:
            view = worker.layer.peers.view()
            following = without(view, Removal(number, by.node, answering, leased, is_lossy))
            worker.layer.proposals.propose(following, told.append)

        try:
            worker.call(remove)
            worker.wait(lambda: bool(told))
        except (ClusterError, LostError) as error:
            self.sim.note(f"node {number} is not removed: {error}")
            return False
        return not told[0]
