"""Listening sockets: bound by the master, one per worker slot and address, kept for good.

With SO_REUSEPORT the kernel spreads connections over the slots evenly, and a slot's queue waits
for the successor when a worker dies (closing one of two sockets would reset half of the queue).
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from metad.config import Config, Listener
from metad.errors import OsError

BACKLOG = 4096
# A client that vanished is noticed after about a minute, so that it does not hold its mailbox.
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 30, 10, 3
USER_TIMEOUT_MS = 60_000


@dataclass(frozen=True, slots=True)
class Bound:
    """One listener with its sockets, a slot each (a unix socket is shared by all)."""

    listener: Listener
    sockets: tuple[socket.socket, ...]

    @property
    def name(self) -> str:
        """What to connect to, the real port in it."""
        address = self.sockets[0].getsockname()
        if isinstance(address, str):
            return f"unix:{address}"
        host, port = address[0], address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def of_slot(self, slot: int) -> socket.socket:
        return self.sockets[slot % len(self.sockets)]


def bind_all(config: Config) -> list[Bound]:
    """Bind every listener for every slot.  Raises OsError; then nothing stays bound."""
    bound: list[Bound] = []
    try:
        for listener in config.listen:
            one = _bind(listener, config.store.workers)
            bound.append(one)
    except BaseException:
        close_all(bound)
        raise
    return bound


def close_all(bound: list[Bound]) -> None:
    for one in bound:
        for sock in one.sockets:
            sock.close()


def _bind(listener: Listener, slots: int) -> Bound:
    sockets: list[socket.socket] = []
    try:
        if listener.path is not None:
            sockets.append(_unix(listener.path))
        else:
            port = listener.port or 0
            _refuse_shared(listener.host, port)
            for _ in range(slots):
                sockets.append(_inet(listener.host, port))
                port = sockets[0].getsockname()[1]
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise OsError(f"cannot listen on {listener.address}: {error.strerror or error}") from None
    return Bound(listener, tuple(sockets))


def _inet(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, KEEPALIVE_IDLE),
            (socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL),
            (socket.TCP_KEEPCNT, KEEPALIVE_COUNT),
            (socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
            (socket.TCP_NODELAY, 1),
        ):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _refuse_shared(host: str, port: int) -> None:
    """SO_REUSEPORT would let us share the port with another hub of this user: not without it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind((host, port))


def _unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).is_socket() and not _answers(path):
            os.unlink(path)
        sock.bind(path)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _answers(path: str) -> bool:
    """Whether a living server has this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
