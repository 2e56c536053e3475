"""Links over TCP and TLS: one per process dials, accepts, and closes them.

Rules of this file:

* Nothing is decided here: which peer may do what, `link` decides.
* A member that cannot be reached is not dialed again at once: requests fail meanwhile.
* An attempt that takes long gets company (dialing): the first that succeeds is the link's.
* A connection that does not become a link costs one line in the log, summed up if repeated.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Final, cast

from metad.cluster.answers import Done, LinkFailed
from metad.cluster.dialing import first_of
from metad.cluster.frames import Kind, encode
from metad.cluster.identity import PeerContexts, fingerprint
from metad.cluster.joining import UNKNOWN, JoinExchange, JoinService
from metad.cluster.link import Link
from metad.cluster.node import Node
from metad.cluster.view import Membership
from metad.limits import (
    CLUSTER_LINKS,
    CLUSTER_LONGEST_REDIAL,
    CLUSTER_OUTSTANDING,
    CLUSTER_REDIAL,
    CLUSTER_SILENCE,
    CLUSTER_UNKNOWN_PEERS,
    KIB,
)
from metad.system.accepting import Accepting
from metad.system.backoff import Backoff
from metad.system.osio import Buffer

TICK_SECONDS: Final = 0.25
# Seconds in which a closed connection may still send what was written.
LINGER: Final = 1.0
# Octets that the transport has unsent before the link keeps the rest to itself.
UNSENT: Final = CLUSTER_OUTSTANDING // 8
# Octets of frames that do not wait for others.
AT_ONCE: Final = 64 * KIB
# Seconds that a node without a certificate has for joining: it makes a key meanwhile.
JOIN_SECONDS: Final = 30.0
MOST_JOINING: Final = 8
REFUSAL: Final = UNKNOWN.encode()
# A link that was lost sooner is not dialed again at once.
STEADY_SECONDS: Final = 1.0
REDIAL: Final = Backoff(CLUSTER_REDIAL, CLUSTER_LONGEST_REDIAL)
_REASONS: Final = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not of this cluster's CA",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the CA of our certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has no certificate",
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it does not speak TLS 1.3",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "HTTP_REQUEST": "it does not speak TLS",
}


def describe(error: BaseException | None) -> str:
    """Why a connection ended, for the log."""
    if error is None:
        return "closed by the other side"
    if isinstance(error, ssl.SSLError) and error.reason:
        return _REASONS.get(error.reason, error.reason.replace("_", " ").lower())
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    if isinstance(error, ConnectionAbortedError):  # of the loop: the handshake took too long
        return "no TLS handshake in time"
    if isinstance(error, ConnectionError):
        return "closed by the other side"
    return str(error) or type(error).__name__


def split_address(address: str) -> tuple[str, int]:
    """ "10.0.0.1:7525" and "[fd00::1]:7525".  Raises ValueError."""
    host, _, port = address.rpartition(":")
    return str(ipaddress.ip_address(host.strip("[]"))), int(port)


class _Connection(asyncio.Protocol):
    """One TLS connection and its link; it is the link's `Wire`.

    What is written within a turn of the loop goes in one piece: a TLS record costs more than most
    frames.
    """

    def __init__(self, links: Links, link: Link) -> None:
        self._frames: list[bytes] = []
        self._size = 0  # of these frames
        self._links = links
        self.link = link
        self._join: JoinExchange | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)
        if self.link.is_closed or self.link.is_connected:
            stream.abort()
            return
        self._transport = stream
        der = stream.get_extra_info("ssl_object").getpeercert(binary_form=True)
        stream.set_write_buffer_limits(high=UNSENT)
        if der is None:
            self._join = self._links.begin_join(self)
        else:
            self.link.connected(self, fingerprint(der))

    def data_received(self, data: bytes) -> None:
        if self._join is not None:
            self._join.feed(data)
        else:
            self.link.feed(data)

    def pause_writing(self) -> None:
        self.link.pause()

    def resume_writing(self) -> None:
        self.link.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is None:  # too late for this link
            return
        if self._join is not None:
            self._join.is_closed = True
            self._links.joining.discard(self)
        self.link.close(describe(exc))

    def write(self, data: bytes) -> None:
        if not self._frames:
            self._links.has_frames(self)
        self._frames.append(data)
        self._size += len(data)
        if self._size >= AT_ONCE:
            self.flush()

    def flush(self) -> None:
        frames, self._frames, self._size = self._frames, [], 0
        if frames and self._transport is not None:
            self._transport.write(b"".join(frames))

    def close(self) -> None:
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Links:
    """All links of one process.  `request` asks a member, `serve` accepts from any."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        contexts: PeerContexts,
        node: Node,
        join: JoinService | None = None,
    ) -> None:
        self.loop = loop
        self.report = node.report
        self._contexts = contexts
        self._join = join
        self.joining: set[_Connection] = set()
        self._node = node
        self._dialed: dict[int, Link] = {}
        self._open: set[Link] = set()
        self._failures: dict[int, int] = {}
        self._reasons: dict[int, str] = {}  # of members that were not reached, until they are
        self._not_before: dict[int, float] = {}
        self._dialed_at: dict[int, float] = {}
        self._tasks: dict[Link, asyncio.Task[None]] = {}
        self._unknown: set[Link] = set()
        self._unsent: list[_Connection] = []
        self._servers: list[Accepting] = []
        self._is_closed = False
        self._timer = loop.call_later(TICK_SECONDS, self._tick)

    # -- asking

    def request(
        self, member: int, kind: int, parts: Sequence[Buffer], done: Done, patience_s: float
    ) -> None:
        """As `Link.request`, over the link to `member`, which is dialed if there is none."""
        link = self._dialed.get(member)
        if link is None:
            found = self._dial(member)
            if isinstance(found, str):
                done(LinkFailed(found))
                return
            link = found
        link.request(kind, parts, done, patience_s)

    def dial(self, member: int) -> Link | None:
        """Have a link before it is needed.  None: there is none, and will be none for a while."""
        link = self._dialed.get(member) or self._dial(member)
        return None if isinstance(link, str) else link

    def has_frames(self, connection: _Connection) -> None:
        """A connection has frames for the end of this turn of the loop."""
        if not self._unsent:
            self.loop.call_soon(self.flush)
        self._unsent.append(connection)

    def flush(self) -> bool:
        """Send what waits for the end of this turn of the loop.  False: nothing did."""
        unsent, self._unsent = self._unsent, []
        for connection in unsent:
            connection.flush()
        return bool(unsent)

    def is_up(self, member: int) -> bool:
        """Whether a link that we dialed is ready for requests."""
        link = self._dialed.get(member)
        return link is not None and link.is_ready

    def _dial(self, number: int) -> Link | str:
        """A link that connects; or why there is none."""
        if self._is_closed:
            return "shutting down"
        member = self._node.current_view().member(number)
        if member is None or member.state is Membership.REMOVED or number == self._node.number:
            return f"node {number} is not a member"
        is_soon = self._node.clock() < self._not_before.get(number, 0.0)
        if is_soon and not self._has_dialed_us(number):
            return f"node {number} cannot be reached"
        link = Link(self._node, self._ended, number, member.address)
        link.known_reason = self._reasons.get(number, "")
        self._dialed[number] = link
        self._dialed_at[number] = self._node.clock()
        self._open.add(link)
        self._start(link, self._connect(link, member.address))
        return link

    def _has_dialed_us(self, number: int) -> bool:
        """Whether it is back, whatever came of our last attempt."""
        return any(link.peer == number and link.is_ready for link in self._open)

    async def _connect(self, link: Link, address: str) -> None:
        def attempt() -> Coroutine[None, None, object]:
            return self.loop.create_connection(
                lambda: _Connection(self, link),
                host,
                port,
                ssl=self._contexts.client,
                ssl_handshake_timeout=CLUSTER_SILENCE,
                ssl_shutdown_timeout=LINGER,
            )

        try:
            host, port = split_address(address)
            await first_of(attempt)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            link.close(describe(error))

    # -- accepting

    def serve(self, sock: socket.socket) -> Accepting:
        """Accept on a listening socket."""
        server = Accepting(self.loop, sock, self._accepted, self.report)
        self._servers.append(server)
        return server

    def _accepted(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """A connection that has yet to show a certificate."""
        place = f"{peer[0]}:{peer[1]}"
        if len(self._unknown) >= CLUSTER_UNKNOWN_PEERS or len(self._open) >= CLUSTER_LINKS:
            self.report(f"warning: {peer[0]} is refused: too many links")
            sock.close()
            return
        link = Link(self._node, self._ended, 0, place)
        self._open.add(link)
        self._unknown.add(link)
        self._start(link, self._secure(link, sock))

    async def _secure(self, link: Link, sock: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(
                lambda: _Connection(self, link),
                sock,
                ssl=self._contexts.server,
                ssl_handshake_timeout=CLUSTER_SILENCE,
                ssl_shutdown_timeout=LINGER,
            )
        except OSError as error:
            host = link.place.rpartition(":")[0]
            self.report(f"warning: {host} is refused: {describe(error)}")
            link.close(describe(error))

    def begin_join(self, connection: _Connection) -> JoinExchange | None:
        """What serves a client without a certificate: nothing, unless there are tokens."""
        host = connection.link.place.rpartition(":")[0]
        service = self._join
        if service is None or not service.tokens.exist() or len(self.joining) >= MOST_JOINING:
            self.report(f"warning: {host} is refused: it has no certificate")
            if service is not None:
                connection.write(encode(Kind.REFUSED, 0, 0, (REFUSAL,), len(REFUSAL)))
            connection.close()
            return None
        self.joining.add(connection)
        self.loop.call_later(JOIN_SECONDS, connection.abort)
        return JoinExchange(service, connection, host)

    # -- all of them

    def _start(self, link: Link, connecting: Coroutine[None, None, None]) -> None:
        task = self.loop.create_task(connecting)
        self._tasks[link] = task
        task.add_done_callback(partial(self._connected, link))

    def _connected(self, link: Link, task: asyncio.Task[None]) -> None:
        self._tasks.pop(link, None)
        self._unknown.discard(link)
        if not task.cancelled() and (error := task.exception()) is not None:
            link.close(repr(error))

    def _ended(self, link: Link) -> None:
        """A link is closed."""
        self._open.discard(link)
        task = self._tasks.pop(link, None)
        if task is not None:
            task.cancel()
        number = link.peer
        if self._dialed.get(number) is link:
            del self._dialed[number]
            failures = self._failures_of(link, number)
            self._failures[number] = failures
            self._reasons[number] = "" if link.was_ready else link.reason
            self._not_before[number] = self._node.clock() + REDIAL.delay(failures)

    def _failures_of(self, link: Link, number: int) -> int:
        """Attempts that failed in a row.  A link that was up for a while is dialed again at once:
        mostly one process of the member has ended, and another one accepts."""
        if not link.was_ready:
            return self._failures.get(number, 0) + 1
        return 0 if self._node.clock() - self._dialed_at[number] >= STEADY_SECONDS else 1

    def _tick(self) -> None:
        self._timer = self.loop.call_later(TICK_SECONDS, self._tick)
        for link in list(self._open):
            link.tick()

    def close(self) -> None:
        """Close all links and stop accepting."""
        self._is_closed = True
        self._timer.cancel()
        for server in self._servers:
            server.close()
        for link in list(self._open):
            link.close("shutting down")
        for connection in list(self.joining):
            connection.abort()
