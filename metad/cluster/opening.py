"""Rules Read and Lock: one mailbox as all members together have it.

    start -> lock at the home, or the next in line -> own list -> LIST to all -> the union
          -> done(Opened)
    a link was lost, or the view changed meanwhile -> once again

Rules of this file:

* The list is the union of what was heard, without the tombstones that were heard.  What a member
  has just as this node has it, it does not send (`listed`).
* If too many members did not answer, there is no list: a short one is never shown.
* A listing that took longer than `LISTING_S` is discarded.
* If it fails because a link was lost or the view changed, it is tried once more: by then the link
  is dialed again, and the view is the same on all.  Clients show an error to their users at once.
* A request for the lock that got no answer may be carried out later, so the lock is released then
  too.  A token of the session's keeps that from another session's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol

from metad.cluster import rules
from metad.cluster.answers import (
    IN_USE,
    TOO_MANY,
    Answer,
    Answered,
    EpochChanged,
    LinkFailed,
    Refused,
)
from metad.cluster.frames import Kind
from metad.cluster.listed import Listed, unpack_listed
from metad.cluster.peers import AGAIN_S, VIEW_CHANGES, Peers
from metad.cluster.uniting import Union
from metad.cluster.view import View
from metad.errors import BehindError, ClusterError, MailboxInUseError, RefusedError
from metad.system.node_standing import nodes

PATIENCE_S = 1.0
LISTING_S = 2.0
UNLOCK_TRIES = 3  # each under another epoch
TOKEN_SIZE = 8


_tokens = count(1)


@dataclass(slots=True)
class Opened:
    """A mailbox for one session.  `lock`: the member that keeps its lock, for this `token`."""

    lock: int
    token: bytes
    union: Union


class OwnMailbox(Protocol):
    """The mailbox as this node has it."""

    def lock(self) -> bool:
        """False if another session has it.  Raises OSError."""

    def unlock(self) -> None: ...

    def list(self, done: Callable[[Listed | RefusedError], None]) -> None:
        """Includes all that was acknowledged before this call.  `done` may be called at once."""


Done = Callable[[Opened | RefusedError], None]
Later = Callable[[float, Callable[[], None]], object]


class PassingError(RefusedError):
    """It may be over after `after_s` seconds."""

    def __init__(self, text: str, after_s: float) -> None:
        super().__init__(text)
        self.after_s = after_s


def open_mailbox(peers: Peers, mailbox: int, own: OwnMailbox, later: Later, done: Done) -> None:
    """Open it for a session.  `done` is called once; `later` calls after so many seconds."""

    def attempt(done: Done) -> None:
        try:
            opening = Opening(peers, mailbox, own, later, done)
        except (ClusterError, OSError) as error:
            done(_no_view(error))
        else:
            opening.start()

    def tried(outcome: Opened | RefusedError) -> None:
        if isinstance(outcome, PassingError):
            later(outcome.after_s, partial(attempt, done))  # under the view of then
        else:
            done(outcome)

    attempt(tried)


class Opening:
    """One attempt of a session to open its mailbox, under one view."""

    def __init__(
        self, peers: Peers, mailbox: int, own: OwnMailbox, later: Later, done: Done
    ) -> None:
        """`done` is called once; with an error, no lock is held.

        Raises ClusterError, OSError if the view cannot be read.
        """
        self._peers = peers
        self._mailbox = mailbox
        self._own = own
        self._later = later
        self._done = done
        self._view = peers.view()
        self._began = 0.0
        self._lock = 0
        self._token = next(_tokens).to_bytes(TOKEN_SIZE, "big")
        self._heard: dict[int, Listed] = {}
        self._entering: set[int] = set()
        self._lost: set[int] = set()  # whose link or epoch failed, or that had too much to send
        self._waiting: set[int] = set()
        self._over = False

    @property
    def _body(self) -> list[bytes]:
        return [self._mailbox.to_bytes(4, "big")]

    def start(self) -> None:
        if self._peers.number not in self._view.active:
            self._fail(RefusedError("this node is not an active member of its cluster"))
            return
        self._lock_at(list(self._view.line(self._mailbox)))

    # -- the lock

    def _lock_at(self, line: list[int]) -> None:
        """Ask the first of `line` for the lock, the next one if it cannot be reached."""
        member, *rest = line
        if member == self._peers.number:
            self._lock_here()
            return

        def answered(answer: Answer) -> None:
            if isinstance(answer, Answered):
                self._locked(member)
                return
            if answer == IN_USE:
                self._fail(MailboxInUseError())
                return
            unlock(self._peers, self._own, member, self._mailbox, self._token)
            if isinstance(answer, LinkFailed) and rest:
                self._lock_at(rest)
            elif isinstance(answer, Refused):  # not the next in line: others may reach this one
                self._fail(PassingError(f"node {member}: {answer.text}", AGAIN_S))
            else:
                self._fail(PassingError(VIEW_CHANGES, 0.0))

        body = [*self._body, self._token]
        self._peers.request(member, Kind.LOCK, body, answered, PATIENCE_S)

    def _lock_here(self) -> None:
        try:
            is_free = self._own.lock()
        except OSError as error:
            self._fail(RefusedError(f"the mailbox's lock: {error.strerror}"))
            return
        if is_free:
            self._locked(self._peers.number)
        else:
            self._fail(MailboxInUseError())

    def _locked(self, member: int) -> None:
        self._lock = member
        self._began = self._peers.now()
        self._own.list(self._own_listed)

    # -- the lists

    def _own_listed(self, listed: Listed | RefusedError) -> None:
        """Ask the others what they have otherwise."""
        if isinstance(listed, RefusedError):
            self._fail(listed)
            return
        view, own, peers = self._view, self._peers.number, self._peers
        self._heard[own] = listed
        self._waiting = {*view.active, *view.entering, own}
        body = [*self._body, *listed.digests]
        for other in sorted(self._waiting - {own}):
            if other in view.entering:  # only its epoch counts, not its mail
                peers.request(other, Kind.STATE, (), self._on_list(other), PATIENCE_S)
            else:
                peers.request(other, Kind.LIST, body, self._on_list(other), PATIENCE_S)
        self._came(own)

    def _on_list(self, member: int) -> Callable[[Answer], None]:
        def answered(answer: Answer) -> None:
            if isinstance(answer, Answered):
                if member in self._view.entering:
                    self._entering.add(member)
                else:
                    try:
                        own = self._heard[self._peers.number]
                        self._heard[member] = unpack_listed(answer.body, own)
                    except ClusterError as error:
                        self._fail(RefusedError(f"node {member}: {error}"))
            elif answer == TOO_MANY or not isinstance(answer, Refused):
                self._lost.add(member)
            self._came(member)

        return answered

    def _came(self, member: int) -> None:
        self._waiting.discard(member)
        if self._waiting or self._over:
            return
        try:
            self._decide()
        except (ClusterError, OSError) as error:
            self._fail(_no_view(error))

    def _decide(self) -> None:
        """All have answered.  Raises ClusterError, OSError if the view cannot be read."""
        view, heard = self._view, set(self._heard)
        if self._peers.view() is not view:
            self._fail(PassingError(VIEW_CHANGES, 0.0))
        elif self._peers.now() - self._began > LISTING_S:
            self._fail(BehindError())
        elif not rules.may_list(view, heard, self._entering, has_word=self._peers.has_word()):
            self._fail(self._no_list())
        else:
            self._unite()

    def _no_list(self) -> RefusedError:
        """Why there is none, and whether there may be one when lost links are there again."""
        view, heard = self._view, set(self._heard)
        reason, word = _why_not(view, heard), self._peers.has_word()
        entering = self._entering | self._lost
        if self._lost and rules.may_list(view, heard | self._lost, entering, has_word=word):
            return PassingError(reason, AGAIN_S)
        return RefusedError(reason)

    def _unite(self) -> None:
        """Make the union, and let others have their turn meanwhile."""
        others = dict(self._heard)
        union = Union(others.pop(self._peers.number), others)
        self._go_on(union, union.steps())

    def _go_on(self, union: Union, steps: Iterator[None]) -> None:
        try:
            for _ in steps:
                self._later(0.0, partial(self._go_on, union, steps))
                return
        except ClusterError as error:
            self._fail(RefusedError(str(error)))
            return
        self._over = True
        self._done(Opened(self._lock, self._token, union))

    # -- the end

    def _fail(self, error: RefusedError) -> None:
        if self._over:
            return
        if self._lock:
            unlock(self._peers, self._own, self._lock, self._mailbox, self._token)
        self._over = True
        self._done(error)


def unlock(
    peers: Peers, own: OwnMailbox, lock: int, mailbox: int, token: bytes, tries: int = UNLOCK_TRIES
) -> None:
    """Release the lock of a mailbox at the member that keeps it.

    Where the request is lost, so is its link, and the lock with it.
    """
    if lock == peers.number:
        own.unlock()
        return

    def answered(answer: Answer) -> None:
        if isinstance(answer, EpochChanged) and tries > 1:  # it was not carried out
            unlock(peers, own, lock, mailbox, token, tries - 1)

    body = [mailbox.to_bytes(4, "big"), token]
    peers.request(lock, Kind.UNLOCK, body, answered, PATIENCE_S)


def _no_view(error: Exception) -> RefusedError:
    return RefusedError(f"the cluster's view cannot be read: {error}")


def _why_not(view: View, heard: set[int]) -> str:
    """Why a list would not be complete."""
    silent = [one for one in view.active if one not in heard]
    do = "does" if len(silent) == 1 else "do"
    reasons = [f"{nodes(silent)} {do} not answer"] if silent else []
    if view.unhealed:
        reasons.append(f"{nodes(view.unhealed)} may have mail that no other node has")
    return "; ".join(reasons) or "etcd does not confirm the view that this node uses"
