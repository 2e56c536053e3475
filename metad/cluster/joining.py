"""Taking in a new node: what a member answers to a client that has a token and no certificate.

    JOIN secret, protocols, fingerprint  ->  cluster, number, CA, view
    JOIN address, fingerprint            ->  the view in which the node is entering

The new node makes its certificate between the two, with the CA's key, which every member has.  If
the second answer is lost, it asks again with another token and the same certificate: it gets the
same number, and the view has it once.

Rules of this file:

* Nothing but JOIN, in small frames and in this order; anything else ends the connection.
* The token is used up before anything is given out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from metad.cluster import hello
from metad.cluster.frames import Decoder, FrameError, Kind, encode
from metad.cluster.identity import CA, CA_KEY
from metad.cluster.node import Node, Wire
from metad.cluster.proposals import Proposals
from metad.cluster.tokens import Tokens
from metad.cluster.view import Member, Membership, View
from metad.errors import ClusterError
from metad.loglines import clean
from metad.system.osio import Osio, read_file

MOST_BODY: Final = 1024
UNKNOWN: Final = "the token is unknown, used already, or older than an hour"
# Without etcd a view is changed by one node at a time: two nodes can agree on that.
MOST_WITHOUT_ETCD: Final = 2
# A session asks every active member: beyond so many, that costs more than it gives.
MOST_WITH_ETCD: Final = 8
# Proposals that another one for the same epoch may overtake before the node that joins is refused.
TRIES: Final = 5
# A process may hear that its proposal is late before it hears of the view that came first.
HEAR_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class JoinService:
    """What a process needs to take nodes in.

    `now`: seconds since the epoch.  `later`: call something after so many seconds.  `look`: use a
    view that a command has stored, as `metad cluster alone` does just before a node joins; raises
    ClusterError, OSError.
    """

    node: Node
    osio: Osio
    place: Path
    now: Callable[[], float]
    proposals: Proposals
    later: Callable[[float, Callable[[], None]], object]
    look: Callable[[], None]

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.osio, self.place)


def ask(secret: bytes, release: str, fingerprint: str) -> bytes:
    """The first request.  `fingerprint` of an earlier attempt, or ""."""
    least, most = hello.PROTOCOLS
    return _pack(secret=secret, least=least, most=most, release=release, fingerprint=fingerprint)


def enter(address: str, fingerprint: str) -> bytes:
    """The second request."""
    return _pack(address=address, fingerprint=fingerprint)


def with_entering(
    view: View, number: int, address: str, fingerprint: str, *, with_etcd: bool = False
) -> View:
    """The next view, with a new member (rule Enter: it has no mail, so it enters healed).

    Raises ClusterError."""
    member = Member(number, address, fingerprint, Membership.ENTERING, healed=True)
    there = view.member(number)
    if there is not None:
        if there.fingerprint == fingerprint and (reason := hello.own_fault(view, number)):
            raise ClusterError(reason)
        if (there.fingerprint, there.address) == (fingerprint, address):
            return view
        raise ClusterError("another node has joined meanwhile; use another token")
    replaced = _replaced_with_etcd if with_etcd else _replaced
    others = [replaced(one) if one.address == address else one for one in view.members]
    left = [one for one in others if one.state is not Membership.REMOVED]
    if with_etcd and len(left) >= MOST_WITH_ETCD:
        raise ClusterError(f"a cluster has at most {MOST_WITH_ETCD} nodes, and they are there")
    if not with_etcd and len(left) >= MOST_WITHOUT_ETCD:
        raise ClusterError(
            f"a cluster without etcd has {MOST_WITHOUT_ETCD} nodes, and they are there"
        )
    return view.changed(members=tuple(sorted((*others, member), key=lambda one: one.number)))


def _replaced(member: Member) -> Member:
    """A member whose address a new node has.  It was absent, so the operator has decided that the
    others go on without it: what it had is on them.  Raises ClusterError."""
    if member.state is Membership.ABSENT or member.state is Membership.REMOVED:
        return replace(member, state=Membership.REMOVED, healed=True)
    raise ClusterError(
        f"{member.address} is the address of node {member.number}, which is {member.state}; "
        "if that node is lost, use `metad cluster alone` first"
    )


def _replaced_with_etcd(member: Member) -> Member:
    """The same with etcd, where a member becomes absent without the operator's word.  All its mail
    must be on others: removing it is then a removal that rule Remove never refuses.

    Raises ClusterError."""
    if member.state is Membership.REMOVED:
        return member
    if member.state is Membership.ABSENT and member.healed:
        return replace(member, state=Membership.REMOVED)
    state = str(member.state)
    if member.state is Membership.ABSENT:
        state = "absent, and not all mail is on other nodes yet"
    raise ClusterError(
        f"{member.address} is the address of node {member.number}, which is {state}; "
        f"if that node is lost, use `metad cluster remove {member.number}` first"
    )


class _Attempt(NamedTuple):
    """What the client asked for, the tries that are left, and the view that was in force."""

    tag: int
    address: str
    fingerprint: str
    tries: int
    view: View


class JoinExchange:
    """One connection of a node that wants to join."""

    def __init__(self, service: JoinService, wire: Wire, place: str) -> None:
        self._service = service
        self._node = service.node
        self._wire = wire
        self._place = place
        self._decoder = Decoder()
        self._number = 0  # given to the other side, once it has shown its token
        self._is_proposing = False
        self.is_closed = False

    def feed(self, data: bytes) -> None:
        try:
            for kind, _, tag, _, body in self._decoder.feed(data):
                if self.is_closed:
                    return
                if kind != Kind.JOIN or len(body) > MOST_BODY or self._is_proposing:
                    raise FrameError("only JOIN is served without a certificate")
                if self._number:
                    self._second(tag, body)
                else:
                    self._answer(tag, self._first(body))
        except (ClusterError, OSError) as error:
            self._refuse(error.strerror or "" if isinstance(error, OSError) else str(error))

    def _answer(self, tag: int, answer: bytes) -> None:
        self._wire.write(encode(Kind.ANSWER, tag, 0, (answer,), len(answer)))

    def _refuse(self, reason: str) -> None:
        self._node.report(f"warning: {self._place} may not join: {clean(reason)}")
        text = reason.encode()
        self._wire.write(encode(Kind.REFUSED, 0, 0, (text,), len(text)))
        self.close()

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._wire.close()

    def _first(self, body: bytes) -> bytes:
        """Raises ClusterError, OSError."""
        service, view = self._service, self._node.current_view()
        secret, fingerprint, release = _read(body, secret=bytes, fingerprint=str, release=str)
        least, most = _read(body, least=int, most=int)
        if not service.tokens.take(secret, int(service.now())):
            raise ClusterError(UNKNOWN)
        ours = hello.PROTOCOLS
        if most < ours[0] or least > ours[1]:
            raise ClusterError(
                f"no common protocol: release {release} speaks {least} to {most}, "
                f"release {self._node.release} {ours[0]} to {ours[1]}"
            )
        known = [one.number for one in view.members if one.fingerprint == fingerprint]
        self._number = known[0] if known else view.members[-1].number + 1
        return _pack(
            cluster=view.cluster,
            number=self._number,
            ca=read_file(service.osio, str(service.place / CA)),
            ca_key=read_file(service.osio, str(service.place / CA_KEY)),
            with_etcd=service.proposals.compares,
        )

    def _second(self, tag: int, body: bytes) -> None:
        """Answered when the view with the new node stands.  Raises ClusterError, OSError."""
        address, fingerprint = _read(body, address=str, fingerprint=str)
        self._service.look()
        self._enter(tag, address, fingerprint, TRIES)

    def _enter(self, tag: int, address: str, fingerprint: str, tries: int) -> None:
        """Raises ClusterError, OSError."""
        view, proposals = self._node.current_view(), self._service.proposals
        entered = with_entering(
            view, self._number, address, fingerprint, with_etcd=proposals.compares
        )
        if entered is view:
            self._answer(tag, _pack(view=view.encode()))
            return
        self._is_proposing = True
        attempt = _Attempt(tag, address, fingerprint, tries, view)
        proposals.propose(entered, partial(self._proposed, attempt, entered))

    def _proposed(self, attempt: _Attempt, entered: View, reason: str) -> None:
        if not reason:
            self._is_proposing = False
            self._node.report(
                f"node {self._number} ({attempt.address}) has joined: epoch {entered.epoch}"
            )
            if not self.is_closed:
                self._answer(attempt.tag, _pack(view=entered.encode()))
        elif self._node.current_view() is attempt.view and self._service.proposals.compares:
            self._service.later(HEAR_SECONDS, partial(self._failed, attempt, reason))
        else:
            self._failed(attempt, reason)

    def _failed(self, attempt: _Attempt, reason: str) -> None:
        """If another view has come first, enter the one that is in force now."""
        self._is_proposing = False
        if self.is_closed:
            return
        if attempt.tries == 1 or self._node.current_view() is attempt.view:
            self._refuse(reason)
            return
        try:
            self._enter(attempt.tag, attempt.address, attempt.fingerprint, attempt.tries - 1)
        except (ClusterError, OSError) as error:
            self._refuse(error.strerror or "" if isinstance(error, OSError) else str(error))


def _pack(**values: Any) -> bytes:
    packed: bytes = msgpack.packb(values)
    return packed


def _read(body: bytes, **kinds: type) -> list[Any]:
    """The values of these names.  Raises FrameError."""
    try:
        found: Any = msgpack.unpackb(body, max_map_len=16, max_array_len=16)
        values = [found[name] for name in kinds]
    except Exception:
        raise FrameError("a JOIN cannot be read") from None
    if [type(value) for value in values] != list(kinds.values()):
        raise FrameError("a JOIN cannot be read")
    return values


def read_answer(body: bytes, **kinds: type) -> list[Any]:
    """For the other side.  Raises FrameError."""
    return _read(body, **kinds)
