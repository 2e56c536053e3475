"""Lives of clusters in which a rule that is missing shows: legal ones, which the real code stands.

Random plans hardly meet what some rules prevent: it takes several steps in one order.  Each life
here tells such an accident of the design.  What is judged is as in any plan.

Rule of this file: a life does only what operators, networks, disks and clients do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from unittest.mock import patch

from metad.cluster.draining import draining
from metad.cluster.view import Membership, View
from metad.layers import tombstone_pull
from tests.cluster.views import make_member, make_view
from tests.sim.cluster_node import FORGET_SECONDS
from tests.sim.cluster_run import ClusterRun
from tests.sim.plan import BOXES, Plan
from tests.sim.stage import Stage

ABSENT, ACTIVE, ENTERING = Membership.ABSENT, Membership.ACTIVE, Membership.ENTERING
DRAINING, REMOVED = Membership.DRAINING, Membership.REMOVED
SLOW_SYNC = 0.7  # seconds: a process that stands still for longer closes its links
LATER = 1000.0


class Life(NamedTuple):
    """`view`: the first one; machines beyond it may join."""

    live: Callable[[Stage], None]
    view: View
    nodes: int
    etcd: bool = True

    def run(self, seed: int = 0) -> ClusterRun:
        plan = Plan(seed, (), clock_step=1_000, nodes=self.nodes, etcd=self.etcd)
        made = ClusterRun(plan, self.live, self.view)
        made.go()
        return made


def all_active(nodes: int) -> View:
    return make_view(*(make_member(number) for number in range(1, nodes + 1)))


def _entering(*weights: int) -> View:
    """Two members, and a third that enters."""
    one, two, three = weights
    return make_view(
        make_member(1, weight=one),
        make_member(2, weight=two),
        make_member(3, ENTERING, healed=True, weight=three),
    )


# -- rules Read, Heal, Walk


def dead_with_mail(stage: Stage) -> None:
    """Node 1 dies with mail that node 2 has too; node 3 does not hear node 2."""
    node, box = stage.box_for(1, 2)
    stage.put(node, box)
    stage.isolate(3, 2)
    stage.kill(1)
    stage.until(lambda: stage.is_in(1, ABSENT, 3))
    stage.wait(3.0)  # so that etcd's word is of this epoch
    stage.look_thrice(3, box)


def walk_held_up(stage: Stage) -> None:
    """Node 3 dies with mail that only node 2 has besides, and node 2 cannot walk."""
    node, box = stage.box_for(2, 3)
    stage.put(node, box)
    stage.network.held.add(2)
    stage.kill(3)
    stage.until(lambda: stage.is_in(3, ABSENT, 1, healed=True), 25.0)
    stage.isolate(1, 2)
    stage.look_thrice(1, box)


def mail_behind_a_walk(stage: Stage) -> None:
    """Node 2 walks; then it takes mail with node 4; then node 4 is absent, in the next epoch."""
    for number in range(1, 5):
        stage.hub(number).absent_after = LATER
    stage.put(*stage.box_for(2, 1))
    stage.etcd.cuts.add(4)
    stage.wait(12.0)  # its lease ends
    stage.network.held.add(2)
    stage.propose(1, lambda view: view.with_member(1, weight=101))
    stage.until(lambda: stage.view(4).epoch == 2 and stage.walks(2))
    box = stage.box_of(4, 2)
    stage.put(4, box)
    stage.propose(1, lambda view: view.with_member(4, state=ABSENT))
    stage.until(lambda: stage.is_in(4, ABSENT, 2))
    stage.kill(4)
    stage.network.held.clear()
    stage.until(lambda: stage.is_in(4, ABSENT, 1, healed=True), 25.0)
    stage.kill(2)
    stage.look_thrice(1, box)


def behind_with_tombstones(stage: Stage) -> None:
    """Node 3 misses deletions, and pulls them on a slow disk; meanwhile node 1 is dead."""
    node, box = stage.box_for(3, 1)
    for _ in range(10):
        stage.put(node, box)
    stage.isolate(3, 1, 2)
    stage.wait(4.0)
    stage.delete(1, box)
    stage.kill(1)
    stage.until(lambda: stage.is_in(1, ABSENT, 3) and stage.is_in(1, ABSENT, 2))
    stage.hub(3).sync_seconds = SLOW_SYNC
    with patch.object(tombstone_pull, "MOST", 1):
        stage.mend()
        stage.until(lambda: stage.is_in(1, ABSENT, 3, healed=True), 40.0)
        stage.kill(2)
        stage.look_thrice(3, box)


# -- rules Lone reader, Epoch


def replaced_while_cut_off(stage: Stage) -> None:
    """Nodes 2 and 3 are left; node 3 is cut off, and a new node 4 takes its place."""
    stage.kill(1)
    stage.until(lambda: stage.is_in(1, ABSENT, 3, healed=True))
    stage.isolate(3)
    stage.join(by=2)
    stage.until(lambda: stage.is_in(4, ACTIVE, 2))
    box = stage.box_of(2, 4)
    stage.put(2, box)
    stage.look_thrice(3, box)


def removed_while_it_serves(stage: Stage) -> None:
    """As before; but an operator removes node 3 at once, whatever may be lost."""
    stage.kill(1)
    stage.until(lambda: stage.is_in(1, ABSENT, 3, healed=True))
    stage.wait(3.0)
    stage.isolate(3)
    stage.remove(2, 3)
    stage.join(by=2)
    stage.until(lambda: stage.is_in(4, ACTIVE, 2), 8.0)
    if stage.is_in(4, ACTIVE, 2):
        box = stage.box_of(2, 4)
        stage.put(2, box)
        stage.look_thrice(3, box)


def _third_enters_unseen(stage: Stage) -> int:
    """Node 3 becomes active; node 2, which had agreed, is cut off in the moment before.

    A mailbox with mail on nodes 1 and 3."""
    stage.etcd.cuts.add(3)
    stage.until(lambda: stage.has_word(1) and stage.has_word(2))
    stage.etcd.held.add(1)
    stage.etcd.cuts.discard(3)
    stage.until(lambda: stage.is_proposed(1, 3, ACTIVE))
    stage.isolate(2)
    stage.etcd.held.clear()
    stage.until(lambda: stage.is_in(3, ACTIVE, 1) and stage.is_in(3, ACTIVE, 3))
    box = stage.box_of(1, 3)
    stage.put(1, box)
    return box


def fresh_word_of_an_old_epoch(stage: Stage) -> None:
    stage.look(2, _third_enters_unseen(stage))


def epoch_changes_under_a_listing(stage: Stage) -> None:
    """Node 2 waits for the lock of node 1, and meanwhile hears of the new epoch."""
    box = _third_enters_unseen(stage)
    end = stage.meanwhile(lambda: stage.look(2, box))
    stage.wait(0.5)
    stage.join_up(2, 3)
    end()


def listing_under_way_to_a_new_epoch(stage: Stage) -> None:
    """Node 2 has asked node 3 under the old epoch, and hears of the new one before the answer."""
    box = _third_enters_unseen(stage)
    end = stage.meanwhile(lambda: stage.look(2, box))
    stage.wait(1.2)
    stage.join_up(2, 3)
    end()


def lock_given_back_to_a_new_epoch(stage: Stage) -> None:
    """What node 2 has sent does not arrive, so its session ends without a listing.  It ceases to
    wait for the answer to UNLOCK, too, before that arrives: at node 1 which has another epoch."""
    box = next(one for one in range(1, BOXES + 1) if stage.view(2).line(one)[0] == 1)
    end = stage.meanwhile(lambda: stage.look(2, box))
    stage.until(lambda: box in stage.worker(1).log.locks._held)
    stage.network.held.add(2)
    stage.wait(1.4)
    stage.propose(1, lambda view: view.with_member(2, weight=101))
    stage.until(lambda: stage.view(1).epoch == 2)
    stage.wait(1.1)
    stage.network.held.clear()
    end()


def back_in_the_last_moment(stage: Stage) -> None:
    """Node 2 had no lease; it has one, and word, before node 1 marks it absent; and is cut off."""
    stage.isolate(2, 1)
    for number in (1, 2):
        stage.hub(number).absent_after = LATER
    stage.until(lambda: stage.has_word(1) and stage.has_word(2))
    stage.etcd.cuts.add(2)
    stage.wait(16.0)  # its lease has ended
    stage.etcd.held.add(1)
    stage.hub(1).absent_after = 0.0
    stage.until(lambda: stage.transacts(1))
    stage.etcd.cuts.discard(2)
    stage.until(lambda: stage.has_word(2))
    stage.etcd.cuts.add(2)
    stage.etcd.held.clear()
    stage.wait(3.0)
    stage.put(1, 1)
    stage.look_thrice(2, 1)


# -- old disks


def old_disk(stage: Stage) -> None:
    """Node 3 gets a disk from before a message that only node 1 has besides; and that is off."""
    node, box = stage.box_for(3, 1)
    stage.put(node, box)
    stage.kill(3)
    copy = stage.copy_disk(3)
    stage.start(3)
    stage.wait(2.0)
    stage.put(node, box)
    stage.wait(15.0)  # the others have heard of the state of its disk
    stage.kill(3)
    stage.restore_disk(3, copy)
    stage.kill(1)
    stage.start(3)
    stage.wait(2.0)
    stage.look_thrice(2, box)
    stage.discard(3)
    stage.start(1)


# -- rule Enter


def return_unseen(stage: Stage) -> None:
    """Node 3 returns, and node 2 is cut off before it hears of that."""
    stage.kill(3)
    stage.until(lambda: all(stage.is_in(3, ABSENT, at, healed=True) for at in (1, 2)))
    stage.etcd.held.add(1)
    stage.start(3)
    stage.until(lambda: stage.is_proposed(1, 3, ENTERING) or stage.is_proposed(1, 3, ACTIVE))
    stage.isolate(2)
    stage.etcd.held.clear()
    stage.until(lambda: stage.is_in(3, ACTIVE, 1) and stage.is_in(3, ACTIVE, 3), 4.0)
    if stage.is_in(3, ACTIVE, 1):  # it is not
        box = stage.box_of(1, 3)
        stage.put(1, box)
        stage.look_thrice(2, box)


def _both_active(stage: Stage) -> bool:
    """As both see it."""
    one, two = stage.view(1), stage.view(2)
    return one.epoch == two.epoch and one.active == (1, 2)


def returns_without_mail(stage: Stage) -> None:
    """Node 1 goes on alone for a while; node 2 is back, on a slow disk."""
    stage.kill(2)
    stage.alone(1)
    for _ in range(100):
        stage.put(1, 1)
    stage.hub(2).sync_seconds = SLOW_SYNC
    stage.start(2)
    stage.until(lambda: _both_active(stage), 30.0)
    stage.isolate(2, 1)
    stage.look_thrice(2, 1)


def returns_with_deleted_mail(stage: Stage) -> None:
    """Node 1 alone deletes what node 2 has; that is back, on a slow disk, and pulls tombstones."""
    for _ in range(10):
        stage.put(1, 1)
    stage.kill(2)
    stage.alone(1)
    stage.delete(1, 1)
    stage.hub(2).sync_seconds = SLOW_SYNC
    with patch.object(tombstone_pull, "MOST", 1):  # a tombstone in each answer: many answers
        stage.start(2)
        stage.until(lambda: _both_active(stage), 30.0)
        stage.kill(1)
        stage.look_thrice(2, 1)


def away_for_longer_than_tombstones_stand(stage: Stage) -> None:
    """Node 1 alone deletes what node 2 has, drops it, and waits; then node 2 returns with it."""
    for _ in range(10):
        stage.put(1, 1)
    stage.kill(2)
    stage.alone(1)
    stage.delete(1, 1)
    stage.collect(1)
    stage.wait(3 * FORGET_SECONDS)
    stage.start(2)
    stage.until(lambda: _both_active(stage), 30.0)
    stage.look(1, 1)


def mail_while_one_enters(stage: Stage) -> None:
    """Mail comes all the time, until the moment in which node 2 is active."""
    stage.kill(2)
    stage.alone(1)
    stage.start(2)
    for _ in range(500):
        if _both_active(stage):
            break
        stage.put(1, 1, wait=False)
        stage.wait(0.02)
    stage.isolate(2, 1)
    stage.look_thrice(2, 1)


# -- rule Drain


def mail_for_one_that_drains(stage: Stage) -> None:
    """Node 3 has given all that it has, and is about to be removed.  Then node 2 is off for a
    moment, and mail comes to node 1."""
    stage.put(1, 1)
    stage.propose(1, lambda view: draining(view, 3, 1, (1, 2, 3)).members)
    stage.until(lambda: all(stage.is_in(3, DRAINING, at) for at in (1, 2, 3)) and stage.has_word(1))
    stage.etcd.held.add(1)
    stage.until(lambda: stage.is_proposed(1, 3, REMOVED))
    stage.kill(2)
    stage.put(1, 1)
    stage.etcd.held.clear()
    stage.until(lambda: stage.is_in(3, REMOVED, 1))
    stage.kill(1)
    stage.start(2)
    stage.until(lambda: stage.is_in(3, REMOVED, 2) and stage.has_word(2))
    stage.look_thrice(2, 1)
    stage.start(1)
    stage.discard(3)


THREE, FOUR, TWO = all_active(3), all_active(4), all_active(2)
LIVES = {
    life.live.__name__: life
    for life in (
        Life(dead_with_mail, THREE, 3),
        Life(walk_held_up, THREE, 3),
        Life(mail_behind_a_walk, FOUR, 4),
        Life(behind_with_tombstones, THREE, 3),
        Life(removed_while_it_serves, THREE, 4),
        Life(replaced_while_cut_off, THREE, 4),
        Life(back_in_the_last_moment, make_view(
            make_member(1), make_member(2), alone="accept"
        ), 2),
        Life(fresh_word_of_an_old_epoch, _entering(1000, 1, 1000), 3),
        Life(epoch_changes_under_a_listing, _entering(1000, 1, 1000), 3),
        Life(listing_under_way_to_a_new_epoch, _entering(1000, 1, 1000), 3),
        Life(lock_given_back_to_a_new_epoch, TWO, 2),
        Life(old_disk, THREE, 3),
        Life(mail_for_one_that_drains, THREE, 3),
        Life(return_unseen, make_view(
            make_member(1, weight=1000), make_member(2, weight=1), make_member(3, weight=1000)
        ), 3),
        Life(returns_without_mail, TWO, 2, etcd=False),
        Life(returns_with_deleted_mail, TWO, 2, etcd=False),
        Life(away_for_longer_than_tombstones_stand, TWO, 2, etcd=False),
        Life(mail_while_one_enters, TWO, 2, etcd=False),
    )
}  # fmt: skip
