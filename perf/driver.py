"""Many connections from one process: sends the commands of sessions, checks every reply.

Rules of this file:

* A session is a generator: it yields (octets to send, check) and gets the reply that the check
  found complete.  A check returns True (complete and right) or False (incomplete), or raises
  BadReplyError.  Octets after a complete reply are an error, because nothing was requested yet.
* The generator shares the machine with the server: epoll, one recv and one send per step, nothing
  is built per message that could be prepared.
* A connection ends like an honest client's: after the session's last reply it waits until the
  server has closed.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from array import array
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from typing import Any

Check = Callable[[bytes], bool]
Session = Generator[tuple[bytes, Check], bytes, None]
# The next session of connection number i; None: this connection has nothing left to do.
NextSession = Callable[[int], "Session | None"]

RECEIVE = 1 << 18
STALLED = 60.0  # seconds without any reply on any connection
MOST_ERRORS = 100


class BadReplyError(Exception):
    """The server sent a wrong reply; `str()` shows it."""


@dataclass(slots=True)
class Report:
    """The results of a run.  `latencies`: seconds, one per unit of work, recorded by the
    sessions."""

    unit: str
    count: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    error_count: int = 0
    latencies: array[float] = field(default_factory=lambda: array("d"))

    @property
    def rate(self) -> float:
        return self.count / self.seconds if self.seconds else 0.0

    def note(self, error: str) -> None:
        self.error_count += 1
        if len(self.errors) < 5:
            self.errors.append(error)

    def percentiles(self) -> dict[str, float]:
        """Milliseconds at the usual percentiles."""
        ordered = sorted(self.latencies)
        if not ordered:
            return {}
        places = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
        last = len(ordered) - 1
        return {name: round(ordered[round(last * q)] * 1e3, 3) for name, q in places.items()}

    def facts(self) -> dict[str, Any]:
        facts = asdict(self)
        del facts["latencies"]
        return facts | {"rate": round(self.rate, 1), "latency_ms": self.percentiles()}

    def text(self) -> str:
        latency = "  ".join(f"{k} {v:.3f}" for k, v in self.percentiles().items())
        lines = [
            f"{self.count} {self.unit} in {self.seconds:.3f} s: {self.rate:,.0f}/s",
            f"latency (ms): {latency or 'none'}",
            f"errors: {self.error_count}",
            *(f"  {error}" for error in self.errors),
        ]
        return "\n".join(lines)


class _Connection:
    __slots__ = ("buffer", "check", "index", "session", "socket", "unsent")

    def __init__(self, index: int, session: Session, address: tuple[str, int]) -> None:
        self.index = index
        self.session: Session | None = session
        self.buffer = b""
        self.unsent = b""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        # Connecting blocks: on loopback this is only the SYN's round trip, and a refusal is noticed
        # here.
        self.socket.settimeout(STALLED)
        self.socket.connect(address)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _, self.check = next(session)  # the first step only waits for the greeting


class Driver:
    """Runs sessions over `connections` connections until none is left."""

    def __init__(self, address: tuple[str, int], next_session: NextSession, report: Report) -> None:
        self._address = address
        self._next_session = next_session
        self._report = report
        self._epoll = select.epoll()
        self._buffer = memoryview(bytearray(RECEIVE))
        self._open: dict[int, _Connection] = {}

    def run(self, connections: int) -> None:
        """Fills in the report's seconds and errors; the sessions count their work themselves."""
        gc.collect()
        gc.disable()
        started = time.perf_counter()
        try:
            for index in range(connections):
                self._connect(index)
            while self._open and self._turn():
                pass
        finally:
            self._report.seconds = time.perf_counter() - started
            gc.enable()
            for connection in self._open.values():
                connection.socket.close()
            self._open.clear()
            self._epoll.close()

    def _connect(self, index: int) -> None:
        session = None
        if self._report.error_count < MOST_ERRORS:
            session = self._next_session(index)
        if session is None:
            return
        try:
            connection = _Connection(index, session, self._address)
        except OSError as error:
            self._report.note(f"connection {index}: {error}")
            return
        number = connection.socket.fileno()
        self._open[number] = connection
        self._epoll.register(number, select.EPOLLIN)

    def _turn(self) -> bool:
        ready = self._epoll.poll(STALLED)
        for number, events in ready:
            connection = self._open[number]
            try:
                if events & select.EPOLLOUT:
                    self._send(connection, connection.unsent)
                if events & ~select.EPOLLOUT:
                    self._receive(connection)
            except (BadReplyError, OSError) as error:
                self._report.note(f"connection {connection.index}: {error}")
                self._close(connection)
        if not ready:
            self._report.note(f"no reply for {STALLED:.0f} s on {len(self._open)} connections")
        return bool(ready)

    def _receive(self, connection: _Connection) -> None:
        # Into one buffer: recv(256 KiB) maps and unmaps its result, 60 µs each (measured).
        data = bytes(self._buffer[: connection.socket.recv_into(self._buffer)])
        session = connection.session
        if session is None or not data:
            if session is not None or data:
                raise BadReplyError(f"unexpected end or octets: {data[:80]!r}")
            self._close(connection)
            return
        if connection.buffer:
            data = connection.buffer + data
        if not connection.check(data):
            connection.buffer = data
            return
        connection.buffer = b""
        try:
            octets, connection.check = session.send(data)
        except StopIteration:
            connection.session = None
        else:
            self._send(connection, octets)

    def _send(self, connection: _Connection, octets: bytes) -> None:
        try:
            sent = connection.socket.send(octets)
        except BlockingIOError:
            sent = 0
        had = connection.unsent
        connection.unsent = octets[sent:] if sent < len(octets) else b""
        if bool(had) != bool(connection.unsent):
            out = select.EPOLLOUT if connection.unsent else 0
            self._epoll.modify(connection.socket.fileno(), select.EPOLLIN | out)

    def _close(self, connection: _Connection) -> None:
        del self._open[connection.socket.fileno()]
        connection.socket.close()
        self._connect(connection.index)
