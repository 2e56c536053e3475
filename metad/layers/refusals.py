"""Mail that is refused because too few members have it: its tombstones.

Rules of this file:

* The tombstone is durable here before the 451.  So a member that did store the message learns of
  the refusal.
* If it cannot be stored here, the client gets its 451 nevertheless, and the tombstone is stored
  again each second until it stands.  Those that wait are bounded; the log tells of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from metad.cluster.answers import Answer, EpochChanged
from metad.cluster.frames import Kind
from metad.cluster.peers import Peers
from metad.errors import RefusedError
from metad.layers.base import Done, Envelope

PATIENCE_S = 5.0
TRIES = 3  # to tell a member, while the view changes
# Tombstones that wait for the own store, of 20 bytes each; the oldest is given up for another.
MOST_WAITING = 10_000


class ClusterStore(Protocol):
    """What a refusal needs of the layer."""

    peers: Peers

    def entomb(self, mailbox: int, ids: bytes, done: Done) -> None: ...


class Refusals:
    """Those of one worker."""

    def __init__(self, layer: ClusterStore, report: Callable[[str], None]) -> None:
        self._layer = layer
        self._report = report
        # Mailbox and id of tombstones that could not be stored yet, the oldest first.
        self._waiting: dict[tuple[int, bytes], None] = {}
        self._trying = 0  # mailboxes of the attempt under way
        self._had_to_wait = 0  # since all stood

    def refuse(self, envelope: Envelope, reason: str, done: Done) -> None:
        """Log the tombstone of a message, tell the other members, then answer."""
        mailboxes = {one.mailbox for one in envelope.recipients}
        waiting = len(mailboxes)
        refusal = RefusedError(reason)

        def entombed(mailbox: int, error: RefusedError | None) -> None:
            nonlocal waiting
            waiting -= 1
            if error is not None:
                self._wait(mailbox, envelope.id, error)
            if not waiting:
                done(refusal)

        for mailbox in mailboxes:
            self._layer.entomb(mailbox, envelope.id, partial(entombed, mailbox))
            self._tell(mailbox, envelope.id)

    def _tell(self, mailbox: int, message_id: bytes) -> None:
        """Tell the other members.  One that does not hear it now pulls it later."""
        peers = self._layer.peers
        view = peers.view()
        parts = (mailbox.to_bytes(4, "big"), message_id)
        for member in {*view.active, *view.entering} - {peers.number}:
            self._tell_one(member, parts, TRIES)

    def _tell_one(self, member: int, parts: tuple[bytes, bytes], tries: int) -> None:
        """A request that meets another view is not carried out: often that view is why the message
        is refused."""

        def answered(answer: Answer) -> None:
            if isinstance(answer, EpochChanged) and tries > 1:
                self._tell_one(member, parts, tries - 1)

        self._layer.peers.request(member, Kind.DELETE, parts, answered, PATIENCE_S)

    # -- what could not be stored

    def _wait(self, mailbox: int, message_id: bytes, error: RefusedError) -> None:
        if not self._waiting:
            self._had_to_wait = 0
            self._report(
                f"warning: refused message {message_id.hex()} may show until its tombstone can be "
                f"stored: {error}"
            )
        self._had_to_wait += 1
        self._waiting[mailbox, message_id] = None
        if len(self._waiting) > MOST_WAITING:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            self._report(
                f"warning: more than {MOST_WAITING:,} tombstones wait: refused message "
                f"{oldest[1].hex()} may show"
            )

    def tick(self) -> None:
        """A second has passed: try again to store what waits."""
        if not self._waiting or self._trying:
            return
        boxes: dict[int, list[bytes]] = {}
        for mailbox, message_id in self._waiting:
            boxes.setdefault(mailbox, []).append(message_id)
        self._trying = len(boxes)
        for mailbox, ids in boxes.items():
            self._layer.entomb(mailbox, b"".join(ids), partial(self._tried, mailbox, ids))

    def _tried(self, mailbox: int, ids: list[bytes], error: RefusedError | None) -> None:
        self._trying -= 1
        if error is not None:
            return
        for message_id in ids:
            self._waiting.pop((mailbox, message_id), None)
        if not self._waiting:
            self._report(f"tombstones of {self._had_to_wait:,} refused messages are stored now")

    def stop(self) -> None:
        """The worker ends: tell what is lost with it."""
        if self._waiting:
            self._report(
                f"warning: tombstones of {len(self._waiting):,} refused messages could not be "
                "stored: the messages may show"
            )
