"""Rule Walk: send this node's mail to the members that should have it and lack it.

    entries, a piece at a time -> LACKS to each member that should have them -> COPY of what lacks

Rules of this file:

* A walk is of one epoch.  If the view changes, or a member fails, it has not been done.
* At most `WINDOW` copies are on their way.
* A message that is damaged here is left out if another active member can read it: that member's
  walk sends it.  Otherwise the walk has not been done: a member that is away may have the only
  good copy.
* A message that a member refuses does not keep the others back; a member that refuses many has no
  room.  Either way the walk has not been done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Protocol

from metad.cluster.answers import Answer, Answered, Refused
from metad.cluster.fetching import ask_readable
from metad.cluster.frames import Kind
from metad.cluster.peers import Peers
from metad.cluster.view import View

WINDOW = 16
MOST_REFUSED = 16
LACKS_PATIENCE = 5.0
MAILBOX_SIZE = 4
KEY_SIZE = 20  # mailbox and id


class Missing(Enum):
    """Why a message was not sent: it is not here any more, or it cannot be read."""

    GONE = 1
    DAMAGED = 2


Sent = Callable[[Answer | Missing], None]


class Mail(Protocol):
    """The mail of this node."""

    def pieces(self) -> Iterator[list[bytes]]:
        """Mailbox and id of every entry, a bounded number at a time."""

    def send(self, member: int, message_id: bytes, mailboxes: Sequence[int], done: Sent) -> None:
        """Make a copy on a member; `done` later."""


class Walk:
    """One walk.  `sent`: copies that it made.  `damaged`: messages no active member can read.

    `refused`: copies that members did not take; `refusal`: why, the last time.
    """

    def __init__(self, peers: Peers, mail: Mail, done: Callable[[bool], None]) -> None:
        """`done` is called once: whether everything is where it belongs."""
        self._peers = peers
        self._mail = mail
        self._done = done
        self._view: View = peers.view()
        self._pieces = mail.pieces()
        self._waiting = 0  # answers to LACKS, and copies that are read or on their way
        self._to_send: list[tuple[int, bytes, list[int]]] = []
        self._over = False
        self.sent = self.damaged = self.refused = 0
        self.refusal = ""

    def start(self) -> None:
        self._go_on()

    def _go_on(self) -> None:
        if self._over:
            return
        if self._peers.view() is not self._view:
            self._finish(whole=False)
            return
        while self._to_send and self._waiting < WINDOW:
            self._send(*self._to_send.pop())
        while not self._waiting and not self._to_send and not self._over:
            piece = next(self._pieces, None)
            if piece is None:
                self._finish(whole=not self.damaged and not self.refused)
            else:
                self._ask(piece)

    def _ask(self, piece: list[bytes]) -> None:
        """Ask each member which of the entries that it should have it lacks."""
        wanted: dict[int, list[bytes]] = {}
        for key in piece:
            mailbox = int.from_bytes(key[:MAILBOX_SIZE], "big")
            for member in self._targets(mailbox, key[MAILBOX_SIZE:]):
                wanted.setdefault(member, []).append(key)
        self._waiting += len(wanted)
        for member, keys in wanted.items():
            self._peers.request(
                member, Kind.LACKS, keys, self._on_lacks(member, set(keys)), LACKS_PATIENCE
            )

    def _targets(self, mailbox: int, message_id: bytes) -> set[int]:
        view = self._view
        also = view.entering if view.short else ()
        return {*view.expected(mailbox, message_id), *also} - {self._peers.number}

    def _on_lacks(self, member: int, keys: set[bytes]) -> Callable[[Answer], None]:
        def answered(answer: Answer) -> None:
            self._waiting -= 1
            if not isinstance(answer, Answered) or len(answer.body) % KEY_SIZE:
                self._finish(whole=False)
                return
            boxes: dict[bytes, list[int]] = {}
            for at in range(0, len(answer.body), KEY_SIZE):
                key = answer.body[at : at + KEY_SIZE]
                if key in keys:
                    mailbox = int.from_bytes(key[:MAILBOX_SIZE], "big")
                    boxes.setdefault(key[MAILBOX_SIZE:], []).append(mailbox)
            self._to_send += [(member, one, its) for one, its in boxes.items()]
            self._go_on()

        return answered

    def _send(self, member: int, message_id: bytes, mailboxes: list[int]) -> None:
        self._waiting += 1

        def sent(outcome: Answer | Missing) -> None:
            if outcome is Missing.DAMAGED and not self._over:
                self._seek_elsewhere(member, (mailboxes[0], message_id))
                return
            self._waiting -= 1
            if isinstance(outcome, Answered):
                self.sent += 1
            elif isinstance(outcome, Refused) and self.refused < MOST_REFUSED:
                self.refused += 1
                self.refusal = f"node {member}: {outcome.text}"
            elif not isinstance(outcome, Missing):
                self._finish(whole=False)
            self._go_on()

        self._mail.send(member, message_id, mailboxes, sent)

    def _seek_elsewhere(self, member: int, key: tuple[int, bytes]) -> None:
        """A message is damaged here, and `member` lacks it."""

        def asked(is_readable: bool) -> None:
            self._waiting -= 1
            self.damaged += not is_readable
            self._go_on()

        others = [one for one in self._view.active if one not in (member, self._peers.number)]
        ask_readable(self._peers, key, others, asked)

    def _finish(self, *, whole: bool) -> None:
        if not self._over:
            self._over = True
            self._done(whole)
