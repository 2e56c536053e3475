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
from pathlib import Path
from typing import Any, Final

import msgpack

from metad.cluster import hello
from metad.cluster.frames import Decoder, FrameError, Kind, encode
from metad.cluster.identity import CA, CA_KEY
from metad.cluster.node import Node, Wire
from metad.cluster.tokens import Tokens
from metad.cluster.view import Member, State, View
from metad.errors import ClusterError
from metad.loglines import clean
from metad.system.osio import Osio, read_file

MOST_BODY: Final = 1024
UNKNOWN: Final = "the token is unknown, used already, or older than an hour"
# Without etcd a view is changed by one node at a time: two nodes can agree on that.
MOST_MEMBERS: Final = 2


@dataclass(frozen=True, slots=True)
class JoinService:
    """What a process needs to take nodes in.  `now`: seconds since the epoch."""

    node: Node
    osio: Osio
    place: Path
    now: Callable[[], float]

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


def with_entering(view: View, number: int, address: str, fingerprint: str) -> View:
    """The next view, with a new member (rule Enter: it has no mail, so it enters healed).

    Raises ClusterError."""
    member = Member(number, address, fingerprint, State.ENTERING, healed=True)
    there = view.member(number)
    if there is not None:
        if (there.fingerprint, there.address) == (fingerprint, address):
            return view
        raise ClusterError("another node has joined meanwhile; use another token")
    others = [_replaced(one) if one.address == address else one for one in view.members]
    left = [one for one in others if one.state is not State.REMOVED]
    if len(left) >= MOST_MEMBERS:
        raise ClusterError(f"a cluster without etcd has {MOST_MEMBERS} nodes, and they are there")
    return view.changed(members=tuple(sorted((*others, member), key=lambda one: one.number)))


def _replaced(member: Member) -> Member:
    """A member whose address a new node has.  It was absent, so the operator has decided that the
    others go on without it: what it had is on them.  Raises ClusterError."""
    if member.state is State.ABSENT or member.state is State.REMOVED:
        return replace(member, state=State.REMOVED, healed=True)
    raise ClusterError(
        f"{member.address} is the address of node {member.number}, which is {member.state}; "
        "if that node is lost, use `metad cluster alone` first"
    )


class JoinExchange:
    """One connection of a node that wants to join."""

    def __init__(self, service: JoinService, wire: Wire, place: str) -> None:
        self._service = service
        self._node = service.node
        self._wire = wire
        self._place = place
        self._decoder = Decoder()
        self._number = 0  # given to the other side, once it has shown its token
        self.is_closed = False

    def feed(self, data: bytes) -> None:
        try:
            for kind, _, tag, _, body in self._decoder.feed(data):
                if self.is_closed:
                    return
                if kind != Kind.JOIN or len(body) > MOST_BODY:
                    raise FrameError("only JOIN is served without a certificate")
                answer = self._second(body) if self._number else self._first(body)
                self._wire.write(encode(Kind.ANSWER, tag, 0, (answer,), len(answer)))
        except (ClusterError, OSError) as error:
            self._refuse(error.strerror or "" if isinstance(error, OSError) else str(error))

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
        )

    def _second(self, body: bytes) -> bytes:
        """Raises ClusterError, OSError."""
        address, fingerprint = _read(body, address=str, fingerprint=str)
        view = self._node.current_view()
        entered = with_entering(view, self._number, address, fingerprint)
        if entered is not view:
            self._node.adopt(entered)
            self._node.report(f"node {self._number} ({address}) has joined: epoch {entered.epoch}")
        return _pack(view=entered.encode())


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
