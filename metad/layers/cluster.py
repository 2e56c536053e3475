"""The log layer on a node of a cluster: `copies` members have each message, any serves all mail.

    mail in    own record and COPY to peers (layers.cluster_outgoing); 250 when enough have it
    mail out   the union of all members' lists (cluster.opening); bodies from here or from a holder
    deletions  own record and DELETE to all members (layers.merged_mailbox)

layers.peer_requests answers what other members ask.

Rules of this file:

* If too few members store a message, it is refused with a tombstone (layers.refusals).
* An id is used for one message.  A retry carries the same id.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol, cast

from metad.cluster.answers import LinkFailed
from metad.cluster.copy_requests import CopyRequests
from metad.cluster.current_view import CurrentView
from metad.cluster.entering import MemberState
from metad.cluster.frames import Kind
from metad.cluster.hello import START_SIZE
from metad.cluster.identity import VIEW, directory, load_contexts
from metad.cluster.joining import JoinService
from metad.cluster.node import Node
from metad.cluster.opening import Opened, open_mailbox
from metad.cluster.own_marks import IS_REFUSED
from metad.cluster.peers import Answered, Peers
from metad.cluster.proposals import DirectProposals, Proposals
from metad.cluster.standing import Standings
from metad.cluster.streaming import STREAMED, Streaming
from metad.cluster.transport import Links, split_address
from metad.cluster.view import View
from metad.cluster.view_file import ViewFile
from metad.errors import ClusterError, NoSpaceError, RefusedError
from metad.layers import base
from metad.layers.base import Done, Envelope, Incoming, Layer, LayerContext, Maildrop, Usage
from metad.layers.cluster_outgoing import ClusterIncoming, InMemory, Outgoing
from metad.layers.forgetting import Forgetting
from metad.layers.logs import FIRST_SLOT, LogLayer
from metad.layers.member_marks import MemberMarks
from metad.layers.merged_mailbox import MergedMaildrop
from metad.layers.message_record import append_message
from metad.layers.own_mailbox import OwnMailbox
from metad.layers.peer_requests import PeerRequests
from metad.layers.refusals import Refusals
from metad.layers.steward import Steward
from metad.layers.tombstone_pull import TombstonePull
from metad.limits import CHUNK_MEMORY
from metad.store.index.tombstones import Tombstones
from metad.store.log import record
from metad.system.osio import Buffer
from metad.system.shared_memory import Cell

# Read at import: a confined worker no longer can.
RELEASE = version("metad")


class Server(Protocol):
    """What accepts links until it is closed."""

    def close(self) -> None: ...


class ClusterLayer(Layer):
    """The store of one worker on a node of a cluster."""

    name = "log"
    opens_later = True
    _node: Node
    _start_token: bytes
    # Bytes of a part of a message that streams; larger messages do.
    piece = STREAMED

    def start(self, context: LayerContext) -> None:
        place = directory(context.data)
        if not (place / VIEW).exists():
            raise ClusterError(
                "this node is in no cluster", remedy="metad cluster init or join puts it into one"
            )
        log = self.log = LogLayer()
        log.start(context)
        self._current = CurrentView(ViewFile(log.osio, str(place / VIEW)), context.area.epoch_cell)
        self.tombstones = Tombstones(log.index)
        self.walked = context.area.walked_cell
        thread = context.runtime.start_thread("peer reads")
        self.requests = PeerRequests(self, thread)
        self.proposals = self._make_proposals(context)
        self.marks = MemberMarks(context, log, place)
        self.links = self._make_links(context)
        self.marks.begin(self._start_token)
        self.peers: Peers = self._make_peers(context)
        self.streaming = Streaming(self.peers, log.budget, log.loop.call_later, self.piece)
        self.copies = CopyRequests(self.peers, log.loop.call_later, context.report)
        log.committer.before_group = self._send_copies
        self._epoch, self._marks_cells = context.area.epoch_cell, context.area.marks_cells
        self._taking_epoch = 0  # the epoch in which this node was found to be active
        self.next_id = log.next_id  # type: ignore[method-assign]
        self.transaction_started = log.transaction_started  # type: ignore[method-assign]
        pulls = context.row[Cell.SLOT] == FIRST_SLOT
        self._refusals = Refusals(self, context.report)
        self._pull = TombstonePull(self, context.report) if pulls else None
        self._steward = Steward(self, thread, context.report) if pulls else None
        self._thread = thread
        if self._steward is not None:
            self.walked[0] = 0  # which member started again, the worker before this one knew
            self.marks.on_start = self._steward.walk_again
        self.forgetting = Forgetting(self, context.area, context.report, self.peers.now)
        cells, clocks = context.area.standing_cells(), (log.osio.boottime_ns, log.osio.time_ns)
        self._standings = Standings(cells, self.peers, self.links.is_up, clocks)

    def _make_proposals(self, context: LayerContext) -> Proposals:
        return DirectProposals(self._current.adopt)

    def _make_peers(self, context: LayerContext) -> Peers:
        return WorkerPeers(self._node, self.links)

    def _make_node(self, context: LayerContext, start_token: bytes, release: str = RELEASE) -> Node:
        log = self.log
        self._start_token = start_token
        return Node(
            number=log.store.node,
            start=start_token,
            release=release,
            current_view=self._current.get,
            adopt=self._current.adopt,
            handler=self.requests.handle,
            report=context.report,
            clock=lambda: log.osio.boottime_ns() / 1e9,
            hub_time_us=log.clock.now_us,
            ended=self.requests.link_ended,
            disks=self.marks.disks,
        )

    def _make_links(self, context: LayerContext) -> Links:
        log = self.log
        self._node = self._make_node(context, secrets.token_bytes(START_SIZE))
        loop = cast(Any, context.loop)
        place = directory(context.data)
        join = JoinService(
            self._node,
            log.osio,
            place,
            lambda: log.osio.time_ns() / 1e9,
            self.proposals,
            loop.call_later,
            self._current.look,
        )
        return Links(loop, load_contexts(place), self._node, join)

    def serve_peers(self, sock: socket.socket) -> Server:
        """Accept links on a listener's socket."""
        if self._steward is not None:
            self._check_address(sock)
        return self.links.serve(sock)

    def _check_address(self, sock: socket.socket) -> None:
        """The view keeps the address of the day on which the node joined."""
        member = self.peers.view().member(self.peers.number)
        if member is not None and split_address(member.address) != sock.getsockname()[:2]:
            self._node.report(
                f"warning: the other nodes look for this node at {member.address}, which is not "
                "its cluster.address: set that back, or empty this node and join again"
            )

    def stop(self) -> None:
        self.links.close()
        self.requests.stop()
        self.log.stop()
        self._refusals.stop()

    def tick(self) -> None:
        self.log.tick()
        self._refusals.tick()
        self.requests.tick()
        if self._pull is not None and self._steward is not None:
            self._current.look()
            self.marks.tick(self.peers.view(), self._thread)
            self._standings.tick(is_refused=bool(self.marks.refusal))
            if not self.marks.refusal:
                self._pull.tick()
                self._steward.tick()
                self.forgetting.tick()

    def adopt(self, view: View) -> None:
        """Make a view durable and current.  Raises ClusterError, OSError."""
        self._current.adopt(view)

    def state(self) -> MemberState:
        """What this node has, for the member that decides about the view."""
        vector = {tuple(origin): last for origin, last in self.tombstones.vector().items()}
        numbers = cast(dict[tuple[int, int], int], vector)
        return MemberState(self.walked[0], numbers, self.peers.has_word())

    # -- mail in

    def next_id(self) -> bytes:
        return self.log.next_id()

    def next_import_id(self) -> bytes:
        return self.log.next_import_id()

    def usage(self, mailbox: int) -> Usage:
        return self.log.usage(mailbox)

    def check_space(self) -> None:
        if self._epoch[0] != self._taking_epoch or self._marks_cells[IS_REFUSED]:
            self._check_part()
        log = self.log
        if log.committer.blocked or not log.source.has_space:
            self._check_others()

    def _check_part(self) -> None:
        """Raises RefusedError if this node does not take part."""
        if self.marks.refusal:
            raise RefusedError(self.marks.refusal)
        view = self.peers.view()
        if self.peers.number not in view.active:
            raise RefusedError("this node is not an active member of its cluster")
        self._taking_epoch = view.epoch

    def _check_others(self) -> None:
        """Raises NoSpaceError unless others can take what this node cannot."""
        try:
            self.log.check_space()
        except NoSpaceError:
            if not self.others_suffice():
                raise

    def check_mailbox(self, mailbox: int) -> None:
        self.check_space()

    def others_suffice(self) -> bool:
        """Whether the peers alone can hold all copies; then a full disk here refuses no mail."""
        view = self.peers.view()
        return len(set(view.counting) - {self.peers.number}) >= view.copies

    def transaction_started(self) -> None:
        self.log.transaction_started()

    def begin(self) -> Incoming:
        return self.begin_for(())

    def begin_for(self, mailboxes: Sequence[int]) -> Incoming:
        self.check_space()
        return ClusterIncoming(self, mailboxes)

    def deliver(self, envelope: Envelope, body: bytes, done: Done) -> None:
        self.check_space()
        budget = self.log.budget
        held = len(body) + CHUNK_MEMORY
        if budget.used + held > budget.half:
            super().deliver(envelope, body, done)
            return
        parts = (envelope.trace, body)
        item = append_message(envelope, parts, len(body), done, self.log.osio.time_ns())
        item.held = held
        source = InMemory(body) if len(body) > self.piece else None
        Outgoing(self, envelope, item, source, done).begin()

    def _send_copies(self) -> bool:
        """A group begins: send what waits, also the copies that a timer has handed to the links.
        False: nothing did."""
        has_sent = self.copies.flush()
        return self.links.flush() or has_sent

    def flush(self) -> None:
        """Write to the links now, not at the end of this turn of the loop."""
        self.links.flush()

    def refuse(self, envelope: Envelope, reason: str, done: Done) -> None:
        """Too few members stored a message: log its tombstone, tell the others, then answer."""
        self._refusals.refuse(envelope, reason, done)

    def entomb(self, mailbox: int, ids: bytes, done: Done, told: bytes = b"") -> None:
        """Submit deletion records; `done` after the last, with the first error.

        `told`: who told of each tombstone, if not this node (`record.Deletion.told`).
        """
        self.log.delete(record.Deletion(mailbox, ids, told=told), done)

    # -- mail out

    def open_mailbox(self, mailbox: int) -> Maildrop:
        raise NotImplementedError("a mailbox of a cluster is opened later")

    def open_later(self, mailbox: int, done: base.Opened) -> None:
        own = OwnMailbox(self.log, self.tombstones, mailbox)

        def opened(outcome: Opened | RefusedError) -> None:
            result: Maildrop | Exception
            if isinstance(outcome, Opened):
                result = drop = MergedMaildrop(self, mailbox, own, outcome)
                if self.marks.refusal:  # a member that was asked has told it
                    drop.close()
                    result = RefusedError(self.marks.refusal)
            else:
                result = outcome
            self.log.loop.call_soon(partial(done, result))

        open_mailbox(self.peers, mailbox, own, self.log.loop.call_later, opened)


class WorkerPeers(Peers):
    """The other members over a worker's links."""

    def __init__(self, node: Node, links: Links) -> None:
        self._node = node
        self._links = links
        self.number = node.number
        self.view = node.current_view  # type: ignore[method-assign]

    def view(self) -> View:
        return self._node.current_view()

    def has_word(self) -> bool:
        return True

    def request(
        self,
        member: int,
        kind: Kind,
        parts: Sequence[Buffer],
        answered: Answered,
        patience_s: float,
    ) -> None:
        disks = self._node.disks
        if disks is not None and disks.refusal:
            answered(LinkFailed(disks.refusal))
        else:
            self._links.request(member, kind, parts, answered, patience_s)

    def now(self) -> float:
        return self._node.clock()
