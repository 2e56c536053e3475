"""Clusters that lack a rule, each of which some seed of CI's must catch.

`seed` is where it was seen last, so that it need not be looked for; any seed of CI's will do.
What two nodes alone cannot show, the protocol's model shows (tests/cluster/cluster_model.py).
"""

from __future__ import annotations

from tests.sim.mutants import Mutant

COPYING = "metad.cluster.copying:Copying."
REFUSALS = "metad.layers.refusals:Refusals."
COPIES = "metad.layers.arriving_copies:ArrivingCopies."
STREAM = "metad.cluster.streaming:Stream."
REQUESTS = "metad.layers.peer_requests:PeerRequests."
ENTERING = "metad.cluster.entering:"
PULL = "metad.layers.tombstone_pull:TombstonePull."

MUTANTS = (
    # -- rule Write
    Mutant("mail is acknowledged after one copy", (
        ("metad.cluster.rules:enough", "return need <=", "return 1 <="),
    ), 1),
    Mutant("the own copy counts before it is durable", (
        (COPYING + "_settle", "if self._own else set()", ""),
        (COPYING + "_go_on", "if self._own is not None:", "if True:"),
        (COPYING + "_answered", "if self._own and len(got)", "if len(got)"),
    ), 4),
    Mutant("a peer that has no space confirms", (
        (COPIES + "copy", "reply(NO_SPACE)", "reply(())"),
    ), 108),
    Mutant("a peer that does not answer counts", (
        (COPYING + "_answered", "(group.got if stored else group.failed)", "group.got"),
    ), 1),
    # -- rule Tombstone
    Mutant("refused mail gets no tombstone", (
        (REFUSALS + "refuse",
         "self._layer.entomb(mailbox, envelope.id, partial(entombed, mailbox))\n"
         "        self._tell(mailbox, envelope.id)",
         "entombed(mailbox, None)"),
    ), 6),
    Mutant("refused mail gets no tombstone here", (
        (REFUSALS + "refuse",
         "self._layer.entomb(mailbox, envelope.id, partial(entombed, mailbox))",
         "entombed(mailbox, None)"),
    ), 6),
    Mutant("tombstones are not pulled", (
        (PULL + "tick", "self._ask(member)", "pass"),
    ), 4),
    Mutant("a late copy is entered over its tombstone", (
        ("index.change:Change._without_dead", "not any(", "True or not any("),
        ("index.change:Change._add_again", "if row[0][:4] not in gone]", "]"),
        ("index.relocation:_Moving._enter_missing", "not in gone]", "is not None]"),
    ), 5),
    # -- messages in pieces
    Mutant("a part that did not arrive is not sent again", (
        (STREAM + "_rewind", "self._rewinding = True", "self._confirmed = self._sent"),
        (COPIES + "store", "if not arriving.is_whole(size, digest):", "if False:"),
    ), 16),
    # -- rule Delete
    Mutant("a deletion is confirmed after one node", (
        ("metad.cluster.rules:deletion_confirmed",
         "return is_durable(view, got) and missing < view.read_copies and", "return "),
    ), 15),
    # -- rule Read
    Mutant("a session shows what its own node has", (
        ("metad.cluster.uniting:Union._unite", "in others.items():", "in ():"),
    ), 6),
    # -- the lock
    Mutant("locks of a link that ended are kept", (
        (REQUESTS + "link_ended", "self._log.locks.release(mailbox)", "pass"),
    ), 1),
    Mutant("a lock that was not confirmed is kept", (
        ("metad.cluster.opening:unlock", "peers.request(", "tries or peers.request("),
    ), 0),
    Mutant("a copy is confirmed before it is durable", (
        (COPIES + "_take", "log.committer.submit(item)",
         "done(None); log.committer.submit(item)"),
    ), 47),
    Mutant("a peer that could not store it confirms", (
        ("metad.layers.arriving_copies:_durable", "if error is None else", "if True else"),
        ("metad.layers.arriving_copies:_Together.done", "if error is not None:", "if False:"),
    ), 5),
    # -- rules Enter, Walk, Set copies
    # -- rule Epoch
)  # fmt: skip
