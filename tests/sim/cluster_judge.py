"""What must hold in a cluster of two copies, at each session and in quiet.

each listing    complete, or it is refused: every acknowledged message, none that was deleted with
                +OK before the login, in order, as it was sent; the same at any node
in quiet        refused mail is gone from all nodes, if the node that refused it has met another
                before its disk was lost; two have every acknowledged message, no tombstone is
                missing, and each node's store is sound (tests.sim.run.Verdict)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from metad.protocol.trace import in_front
from tests.support.oracle import Ledger, digest, show

if TYPE_CHECKING:
    from tests.sim.cluster_node import ClusterHub
    from tests.sim.simulation import Simulation

# A node that others have heard for so long has told them what it refused.
TELLING_SECONDS = 5.0
SENDER = "s@x"


def address(box: int) -> str:
    return f"u{box}@x"


class Seen(NamedTuple):
    """Before a login: what it must list and what it must not."""

    must: set[bytes]
    gone: set[tuple[int, bytes]]


class NodesLedger(Ledger):
    """Of several nodes: each has a part of the mail."""

    def must_have(self, mailbox: int) -> set[bytes]:
        return set()

    def all_must_have(self, mailbox: int) -> set[bytes]:
        """What all nodes together have."""
        return super().must_have(mailbox)


class ClusterJudge:
    """Of all nodes together."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self.ledger = NodesLedger()
        self.bodies: dict[bytes, bytes] = {}
        self.refused: dict[bytes, tuple[int, float]] = {}  # by which node; how long it was heard
        self.untold: set[bytes] = set()  # refused, and only a lost disk knew
        # The epoch of the last view in which a node went on alone: what a node of an older epoch
        # lists is not judged, because the operator promised that it is off.
        self.alone_epoch = 0
        self.counts = {"250": 0, "451": 0, "listed": 0, "-ERR": 0, "deleted": 0, "fetched": 0}

    # -- mail in

    def sent(self, message_id: bytes, body: bytes, boxes: tuple[int, ...]) -> None:
        assert message_id not in self.bodies, f"{message_id.hex()} is made twice"
        self.bodies[message_id] = body
        self.ledger.apply(("sent", (message_id, digest(body), boxes)))

    def acknowledged(self, message_id: bytes) -> None:
        self._count("250", message_id.hex())
        self.ledger.apply(("acked", [message_id]))

    def refuse(self, message_id: bytes, hub: ClusterHub) -> None:
        self._count("451", message_id.hex())
        self.refused[message_id] = hub.node, hub.heard_seconds

    def disk_is_lost(self, hub: ClusterHub) -> None:
        """What a node refused while it was cut off, and then never told, no other can know.  One
        that has a copy must keep it: it might have been acknowledged."""
        for message_id, (node, heard) in self.refused.items():
            if node == hub.node and hub.heard_seconds - heard < TELLING_SECONDS:
                self.untold.add(message_id)

    # -- sessions

    def before_login(self, box: int) -> Seen:
        return Seen(self.ledger.all_must_have(box), set(self.ledger.deleted))

    def failed(self, text: str) -> None:
        self._count("-ERR", text)

    def listed(self, where: str, box: int, ids: list[bytes], seen: Seen) -> None:
        self._count("listed", f"{len(ids)} of mailbox {box} {where}")
        assert ids == sorted(set(ids)), f"mailbox {box} {where} is not in order: {show(ids)}"
        back = [one for one in ids if (box, one) in seen.gone]
        assert not back, f"mailbox {box} {where} lists what was deleted: {show(back)}"
        strange = [one for one in ids if box not in self.ledger.sent.get(one, (b"", ()))[1]]
        assert not strange, f"mailbox {box} {where} lists what was not sent: {show(strange)}"
        missing = {one for one in seen.must - set(ids) if (box, one) not in self.ledger.deleting}
        assert not missing, f"mailbox {box} {where} lacks {show(missing)}"

    def fetched(self, box: int, message_id: bytes, text: bytes, size: int) -> None:
        self._count("fetched", message_id.hex())
        whole = in_front(SENDER, address(box)) + self.bodies[message_id]
        assert text == whole, f"{message_id.hex()} is another one: {text!r}"
        assert size == len(whole), f"{message_id.hex()} has {len(whole)} bytes, LIST says {size}"

    def deleting(self, box: int, ids: list[bytes]) -> None:
        self.ledger.apply(("deleting", [(box, one) for one in ids]))

    def deleted(self, box: int, ids: list[bytes]) -> None:
        self._count("deleted", f"{show(ids)} of mailbox {box}")
        self.ledger.apply(("deleted", [(box, one) for one in ids]))

    def _count(self, what: str, detail: str) -> None:
        self.counts[what] += 1
        self._sim.note(f"{what}: {detail}")

    # -- in quiet

    def all_have_met(self) -> None:
        """From now on refused mail is as deleted mail: unless a disk failed or was full, which may
        have taken the tombstone of its refusal too, or was lost before another node heard of it."""
        gone = [(box, one) for one in self.refused for box in self.ledger.sent[one][1]]
        self.ledger.apply(("deleting", gone))
        if not self._sim.faults.struck:
            told = [(box, one) for box, one in gone if one not in self.untold]
            self.ledger.apply(("deleted", told))

    def have(self, box: int, nodes: list[set[bytes]], copies: int) -> None:
        """`nodes`: what each of them has of a mailbox."""
        for one in sorted(self.ledger.all_must_have(box)):
            having = sum(one in there for there in nodes)
            assert having >= copies, f"{one.hex()} of mailbox {box} is on {having} nodes"

    # -- what a hub of its own tells its judge

    def look_at_table(self) -> None:
        """tests.sim.run.Verdict asks; rows of the log table are single hubs' business."""
