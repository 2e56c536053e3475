"""Clusters that lack a rule which random plans hardly meet: each is caught in a directed life.

Names are those of the protocol's model (tests/cluster/cluster_model.py).  If a second rule would
still prevent the accident, the mutant lacks that one too.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.sim import lives
from tests.sim.lives import LIVES, Life
from tests.sim.mutants import Edit, Mutant

RULES = "metad.cluster.rules:"
ENTERING = "metad.cluster.entering:"
LINK = "metad.cluster.link:Link."
OLDER = "if epoch != mine and (epoch > mine or kind not in RELEASES):"

NOT_COMPARED: Edit = (
    "metad.cluster.opening:Opening._decide", "if self._peers.view() is not view:", "if False:",
)  # fmt: skip


class LifeMutant(NamedTuple):
    """`life`: the name of the one that catches it."""

    name: str
    life: str
    edits: tuple[Edit, ...]

    def apply(self) -> None:
        Mutant(self.name, self.edits).apply()

    @property
    def its_life(self) -> Life:
        return LIVES[self.life]


MUTANTS = (
    # -- rule Read
    LifeMutant("unhealed-uncounted", lives.dead_with_mail.__name__, (
        (RULES + "may_list", "- len(there) + len(view.unhealed)", "- len(there)"),
    )),
    # -- rules Walk, Heal
    LifeMutant("heal-no-walk", lives.walk_held_up.__name__, (
        (ENTERING + "_of_copies",
         "if view.short or not found.have_walked(view, view.active):", "if view.short:"),
    )),
    LifeMutant("heal-unadopted", lives.mail_behind_a_walk.__name__, (
        ("metad.layers.steward:Steward._walked",
         "if whole and not must_repeat:\n        self._layer.walked[0] = epoch",
         "now = self._layer.peers.view().epoch\n"
         "    if whole or now != epoch:\n        self._layer.walked[0] = now"),
    )),
    LifeMutant("heal-no-tombstones", lives.behind_with_tombstones.__name__, (
        (ENTERING + "_of_copies", "return _healed(view) if are_level else None",
         "return _healed(view)"),
    )),
    # -- rule Remove
    LifeMutant("remove-leased", lives.removed_while_it_serves.__name__, (
        ("metad.cluster.removing:_may_serve", "if removal.number not in removal.leased:", "if 1:"),
        ("metad.cluster.directory:Directory._compare_and_swap", "in leaving(old, view)", "in ()"),
    )),
    # -- rule Drain
    LifeMutant("drain-counted", lives.mail_for_one_that_drains.__name__, (
        (RULES + "enough", "intersection(view.counting)", "intersection(view.active)"),
    )),
    # -- rule Lone reader
    LifeMutant("lone-lease", lives.replaced_while_cut_off.__name__, (
        (RULES + "may_list", "and (has_word or not (lone and missing))", ""),
    )),
    LifeMutant("lone-entering", lives.fresh_word_of_an_old_epoch.__name__, (
        (RULES + "may_list", "if lone:", "if False:"),
    )),
    # -- rule Epoch
    LifeMutant("answer-epoch", lives.epoch_changes_under_a_listing.__name__, (NOT_COMPARED,)),
    LifeMutant("no-epoch", lives.listing_under_way_to_a_new_epoch.__name__, (
        NOT_COMPARED,
        (LINK + "_take_request", OLDER, "if False:"),
        (LINK + "_finish", "waiting.epoch == epoch == self._node.current_view().epoch",
         "epoch is not None"),
    )),
    LifeMutant("release-epoch", lives.lock_given_back_to_a_new_epoch.__name__, (
        (LINK + "_take_request", OLDER, "if epoch != mine:"),
    )),
    # -- old disks
    LifeMutant("old-disk-serves", lives.old_disk.__name__, (
        ("metad.cluster.own_marks:OwnMarks.is_behind", "and self._is_newest()", "and False"),
        ("metad.cluster.old_disks:OldDisks.fault", "if theirs.told and not", "if False and not"),
    )),
    # -- rule Absent
    LifeMutant("absent-unleased", lives.back_in_the_last_moment.__name__, (
        ("metad.cluster.directory:Directory._compare_and_swap", "in leaving(old, view)", "in ()"),
    )),
    # -- rule Enter
    LifeMutant("enter-one-step", lives.return_unseen.__name__, (
        (ENTERING + "_of_member", 'return {"state": Membership.ENTERING}',
         'return {"state": Membership.ACTIVE, "healed": False}'),
    )),
    LifeMutant("enter-unadopted", lives.return_unseen.__name__, (
        (ENTERING + "_of_member", "and have_adopted\n        and", "and"),
        ("metad.layers.steward:Steward._decide",
         "if all(number in states for number in view.active):", "if True:"),
        (ENTERING + "_may_serve",
         "found.are_level([number], view.active) and found.are_level(view.active, [number])",
         "all(found.are_level([number], [one]) and found.are_level([one], [number])\n"
         "        for one in view.active if one in found.last)"),
    )),
    LifeMutant("enter-no-copies", lives.returns_without_mail.__name__, (
        (ENTERING + "_may_serve", "(not view.short or", "(True or"),
    )),
    LifeMutant("enter-no-tombstones", lives.returns_with_deleted_mail.__name__, (
        (ENTERING + "_may_serve", "return both_ways and", "return"),
    )),
    # -- rule Forget
    LifeMutant("forget-absent", lives.away_for_longer_than_tombstones_stand.__name__, (
        ("metad.layers.forgetting:_others", "one.state is not Membership.REMOVED",
         "one.number in view.active"),
    )),
    # -- rule Write
    LifeMutant("entering-unwritten", lives.mail_while_one_enters.__name__, (
        (RULES + "also", "return view.entering if view.short else ()", "return ()"),
    )),
)  # fmt: skip
