"""One connection between two nodes: both may ask, both answer.  Without a socket or a clock.

    HELLO of both sides -> the older view is replaced -> both accept -> requests and answers

Rules of this file:

* Nothing is asked or served before both sides know each other and have one view.
* A request carries its epoch.  An older one is answered with our view and STALE, and not carried
  out, unless it gives something back.  The asker compares again at the answer (rule Epoch).
* A process whose loop stood still closes its links without reading them, so that it carries out
  nothing old.
* A peer is judged again whenever our view changes: a removed member is out at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metad import limits
from metad.cluster import answers, frames, greeting, hello
from metad.cluster.answers import Answered, Done, EpochChanged, LinkFailed, Refused
from metad.cluster.asking import Asking
from metad.cluster.frames import (
    FIRST_ANSWER,
    FIRST_REQUEST,
    MORE,
    PIECE,
    RELEASES,
    Decoder,
    FrameError,
    Kind,
    encode,
    pieces,
)
from metad.cluster.hello import Hello
from metad.cluster.node import Node, Phase, Wire
from metad.cluster.outgoing import Outgoing
from metad.cluster.serving import Reply, Serving
from metad.cluster.view import View
from metad.errors import ClusterError
from metad.loglines import clean
from metad.system.osio import Buffer

_READY, _CLOSED = Phase.READY, Phase.CLOSED


class Link:
    """`closed` is told when it ends, for `reason`.  `dialed`: the member that was called, or 0.
    `peer`: the number of the other side, once it is known.  `epoch`: the newest that it has.
    `known_reason`: why the attempt before failed; it is reported once."""

    __slots__ = (
        "_asking", "_begun", "_brief", "_closed", "_decoder", "_dialed", "_early", "_fingerprint",
        "_heard", "_judged", "_mine", "_node", "_outgoing", "_phase", "_pinged", "_serving",
        "_ticked", "_welcome", "_wire", "epoch", "hello", "known_reason", "peer", "place", "reason",
        "was_ready",
    )  # fmt: skip

    def __init__(
        self, node: Node, closed: Callable[[Link], None], dialed: int = 0, place: str = ""
    ) -> None:
        self._node = node
        self._closed = closed
        self._dialed = dialed
        self._phase = Phase.CONNECTING
        self._wire: Wire | None = None
        self._fingerprint = ""
        self.hello: Hello | None = None
        self._mine: Hello | None = None
        self._decoder = Decoder(hello.MOST_HELLO)
        self._asking = Asking(node.report)
        self._serving = Serving()
        self._outgoing = Outgoing(self._write)
        self._early: list[tuple[int, int, int, Sequence[Buffer], int]] = []
        self._begun = self._heard = self._ticked = self._pinged = node.clock()
        self._brief = self._welcome = False  # it is a command; it has accepted us
        self.epoch = 0
        self._judged = 0  # the epoch of our view in which the other side was found to be a member
        self.peer = dialed
        self.place = place
        self.reason = self.known_reason = ""
        self.was_ready = False

    def __repr__(self) -> str:
        return f"<Link to node {self.peer} ({self.place}): {self._phase.name.lower()}>"

    @property
    def is_closed(self) -> bool:
        return self._phase is _CLOSED

    @property
    def is_connected(self) -> bool:
        return self._wire is not None

    @property
    def is_ready(self) -> bool:
        return self._phase is _READY

    # -- asking

    def request(self, kind: int, parts: Sequence[Buffer], done: Done, patience_s: float) -> None:
        """Ask; `done` is called once, perhaps within this call.  `parts` must not change till then.

        Sent when the link is ready; the patience counts from now.
        """
        if self._phase is _CLOSED:
            done(LinkFailed(self.reason))
            return
        size = sum(map(len, parts))
        if (obstacle := self._asking.obstacle(kind, size)) is not None:
            done(obstacle)
            return
        node = self._node
        epoch = node.current_view().epoch
        tag = self._asking.add(done, node.clock() + patience_s, epoch, size)
        if self._phase is not _READY:
            self._early.append((kind, tag, epoch, parts, size))
        elif epoch == self._judged or self._keep_up():
            self._send(kind, tag, epoch, parts, size)

    def _send(self, kind: int, tag: int, epoch: int, parts: Sequence[Buffer], size: int) -> None:
        if size <= PIECE:
            self._outgoing.send(encode(kind, tag, epoch, parts, size))
        else:
            self._outgoing.send_large(pieces(kind, tag, epoch, parts), size)

    def _keep_up(self) -> bool:
        """Our view may have changed: judge the peer by it, then send it.  False: closed now."""
        view = self._node.current_view()
        if view.epoch != self._judged and not self._is_member(view):
            return False
        if view.epoch > self.epoch:
            self.epoch = view.epoch
            body = view.encode()
            self._send(Kind.VIEW, 0, view.epoch, (body,), len(body))
        return True

    def _is_member(self, view: View) -> bool:
        fault = hello.member_fault(view, self.peer, self._fingerprint) or hello.own_fault(
            view, self._node.number
        )
        if fault is not None:
            self._refuse(fault)
            return False
        self._judged = view.epoch
        return True

    # -- what the transport tells

    def connected(self, wire: Wire, fingerprint: str) -> None:
        """TLS is done; `fingerprint`: SHA-256 of the other side's certificate in DER."""
        self._wire = wire
        self._fingerprint = fingerprint
        self._begun = self._heard = self._node.clock()
        self._phase = Phase.HELLO
        self._outgoing.resume()
        try:
            self._mine = greeting.my_hello(self._node, fingerprint)
        except ClusterError as error:
            self._refuse(str(error))
            return
        body = self._mine.pack()
        self._send(Kind.HELLO, 0, self._node.current_view().epoch, (body,), len(body))

    def pause(self) -> None:
        self._outgoing.pause()

    def resume(self) -> None:
        if self._phase is not _CLOSED:
            self._outgoing.resume()

    def _write(self, data: bytes) -> None:
        if self._wire is not None:
            self._wire.write(data)

    def feed(self, data: bytes) -> None:
        now = self._node.clock()
        if self._phase is _CLOSED or self._has_stood_still(now):
            return
        self._heard = now
        try:
            for kind, flags, tag, epoch, body in self._decoder.feed(data):
                if kind >= FIRST_ANSWER:
                    self._take_answer(kind, flags, tag, epoch, body)
                elif kind >= FIRST_REQUEST:
                    self._take_request(kind, flags, tag, epoch, body)
                else:
                    self._take_own(kind, body)
                if self._phase is _CLOSED:
                    return
        except ClusterError as error:
            self._refuse(str(error))

    def tick(self) -> None:
        """To be called four times a second: deadlines, pings, silence, a view that has changed."""
        now = self._node.clock()
        if self._phase is _CLOSED or self._has_stood_still(now):
            return
        self._ticked = now
        self._close_if_overdue(now)
        self._asking.expire(now)
        if self._phase is _READY and self._keep_up() and now - self._pinged >= limits.CLUSTER_PING:
            self._pinged = now
            self._send(Kind.PING, 0, self._judged, (), 0)

    def _close_if_overdue(self, now: float) -> None:
        if now - self._heard > limits.CLUSTER_SILENCE:
            self.close(f"silent for {limits.CLUSTER_SILENCE:g} s")
        elif self._phase is not _READY and now - self._begun > limits.CLUSTER_SILENCE:
            self.close(f"not up after {limits.CLUSTER_SILENCE:g} s")  # it may send byte by byte
        elif self._outgoing.is_unread:
            self.close("it does not read what it is sent")

    def _has_stood_still(self, now: float) -> bool:
        still = now - self._ticked
        if still <= limits.CLUSTER_STOOD_STILL:
            return False
        self.close(f"this process stood still for {still:.1f} s")
        return True

    def close(self, reason: str) -> None:
        """The connection is lost, or not wanted any more.  Idempotent."""
        if self._phase is _CLOSED:
            return
        if self._phase is _READY and not self._brief:
            self._node.report(f"warning: link with {self._name()} lost: {reason}")
        elif self._dialed and reason != self.known_reason:
            self._node.report(f"warning: no link with {self._name()}: {reason}")
        self._end(reason, at_once=True)

    def _refuse(self, reason: str) -> None:
        """Tell both logs why, and close."""
        if greeting.is_news(self._node, self.peer, reason):
            self._node.report(f"warning: link with {self._name()} refused: {clean(reason)}")
        text = reason.encode()
        self._outgoing.send(encode(Kind.REFUSED, 0, 0, (text,), len(text)))
        self._end(reason)

    def _end(self, reason: str, *, at_once: bool = False) -> None:
        self._phase = _CLOSED
        self.reason = reason
        self._early.clear()
        self._outgoing.clear()
        self._serving.clear()
        try:
            self._closed(self)
            self._node.ended(self)
        except Exception as error:  # what waits here must hear of the end all the same
            self._node.report(f"panic: the end of the link with {self._name()}: {error!r}")
        self._asking.fail_all(reason)
        if self._wire is not None:
            (self._wire.abort if at_once else self._wire.close)()

    def _name(self) -> str:
        number = f"node {self.peer}" if self.peer else "a node"
        return f"{number} ({self.place})" if self.place else number

    # -- frames of the link itself

    def _take_own(self, kind: int, body: bytes) -> None:
        """Raises ClusterError."""
        if kind == Kind.HELLO:
            self._take_hello(hello.unpack(body))
        elif self.hello is None:
            raise FrameError("a frame before the HELLO")
        elif kind == Kind.VIEW:
            self._take_view(View.decode(body))
        elif kind == Kind.PING:
            self._send(Kind.PONG, 0, self._judged, (), 0)
        elif not self._welcome:
            self._welcome = True
            if self._phase is Phase.ACCEPTED:
                self._begin()

    def _take_hello(self, theirs: Hello) -> None:
        if self._phase is not Phase.HELLO or self.hello is not None or self._mine is None:
            raise FrameError("a second HELLO")
        view = self._node.current_view()
        self.peer = self.peer or theirs.number
        fault = greeting.fault(self._node, theirs, self._mine, self._fingerprint, self._dialed)
        if fault is not None:
            raise FrameError(fault)
        self.hello = theirs
        self._decoder.most = frames.MOST_BODY
        self._brief = theirs.command
        self._judged = view.epoch
        self.epoch = theirs.epoch
        if theirs.epoch > view.epoch:
            self._phase = Phase.VIEW
        elif self._keep_up():
            self._accept()

    def _take_view(self, theirs: View) -> None:
        mine = self._node.current_view()
        # Only a member's word counts, and it may have ceased to be one.
        if mine.epoch != self._judged and not self._is_member(mine):
            return
        if theirs.cluster != mine.cluster:
            raise FrameError("a view of another cluster")
        if theirs.epoch == mine.epoch and theirs.digest != mine.digest:
            raise FrameError(hello.two_views(mine.epoch))
        self.epoch = max(self.epoch, theirs.epoch)
        if theirs.epoch > mine.epoch:
            try:
                self._node.adopt(theirs)
            except OSError as error:
                raise ClusterError(f"the view cannot be stored: {error.strerror}") from None
        if self._keep_up() and self._phase is Phase.VIEW and self._judged >= self.epoch:
            self._accept()

    def _accept(self) -> None:
        """The other side is a member with our view.  Ready once it has found the same of us."""
        self._send(Kind.PONG, 0, self._judged, (), 0)
        self._phase = Phase.ACCEPTED
        if self._welcome:
            self._begin()

    def _begin(self) -> None:
        """Both sides know each other: what waited is sent."""
        self._phase = _READY
        self.was_ready = True
        greeting.forget_refusals(self._node, self.peer)
        if not self._brief:
            self._node.report(f"link with {self._name()} is up")
        early, self._early = self._early, []
        for kind, tag, epoch, parts, size in early:
            if epoch != self._judged:
                self._finish(tag, b"", None)
            elif self._asking.is_wanted(tag):
                self._send(kind, tag, epoch, parts, size)

    # -- answers

    def _take_answer(self, kind: int, flags: int, tag: int, epoch: int, body: bytes) -> None:
        if kind == Kind.REFUSED and tag == 0:
            text = clean(body.decode("utf-8", "replace"))
            if greeting.is_news(self._node, self.peer, text):
                self._node.report(f"warning: {self._name()} refuses the link: {text}")
            self._end(text)
        elif flags & MORE:
            self._asking.take_piece(tag, body)
        elif kind == Kind.ANSWER:
            self._finish(tag, body, epoch)
        elif kind == Kind.REFUSED:
            waiting, text_bytes = self._asking.take(tag, body)
            self._asking.tell(waiting, Refused(clean(text_bytes.decode("utf-8", "replace"))))
        else:
            self._finish(tag, b"", None)

    def _finish(self, tag: int, body: bytes, epoch: int | None) -> None:
        """A request is answered under `epoch`; None: it is not, the epoch has changed."""
        waiting, body = self._asking.take(tag, body)
        is_good = waiting.epoch == epoch == self._node.current_view().epoch
        self._asking.tell(waiting, Answered(body) if is_good else EpochChanged())

    # -- serving

    def _take_request(self, kind: int, flags: int, tag: int, epoch: int, body: bytes) -> None:
        if self._phase is not _READY or tag == 0:
            raise FrameError("a request before the HELLO" if tag else "a request without a tag")
        serving, node = self._serving, self._node
        if flags or serving.partial:
            whole = serving.collect(kind, flags, tag, epoch, body)
            if whole is None:
                return
            body = whole
        mine = node.current_view().epoch
        if mine != self._judged and not self._keep_up():
            return
        if epoch != mine and (epoch > mine or kind not in RELEASES):
            if epoch > mine:
                raise FrameError(f"a request of epoch {epoch} without its view")
            self._send(Kind.STALE, tag, mine, (), 0)
            return
        serving.begin(tag, len(body), is_release=kind in RELEASES)
        reply = Reply(self, tag)
        try:
            node.handler(kind, body, reply)
        except Exception as error:
            node.report(f"panic: request {kind} of {self._name()}: {error!r}")
            reply(answers.INTERNAL)

    def answer(self, tag: int, answer: Sequence[Buffer] | Refused) -> None:
        """For `Reply`."""
        if not self._serving.end(tag):
            return
        epoch = self._node.current_view().epoch
        if epoch != self._judged and not self._keep_up():
            return
        if not isinstance(answer, Refused):
            size = sum(map(len, answer))
            # What takes no more than its request did goes always: it may have granted a lock.
            if size <= limits.CLUSTER_REQUEST_MEMORY or self._outgoing.has_room(size):
                self._send(Kind.ANSWER, tag, epoch, answer, size)
                return
            answer = answers.TOO_MANY
        text = answer.text.encode()[:PIECE]
        self._send(Kind.REFUSED, tag, epoch, (text,), len(text))
