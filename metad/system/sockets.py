"""Listening TCP sockets, as the nanny and the master make them.

The nanny uses it too, so it imports only the standard library.
"""

from __future__ import annotations

import socket

BACKLOG = 4096
# A vanished client is detected after about a minute, so that it does not keep its mailbox locked.
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 30, 10, 3
USER_TIMEOUT_MS = 60_000


def bind_slots(host: str, port: int, slots: int) -> list[socket.socket]:
    """One bound socket per slot, all on the same address; port 0 selects a free port.

    Clients can connect only after `listen`.  Raises OSError; then nothing stays bound.
    """
    made: list[socket.socket] = []
    try:
        refuse_shared(host, port)
        for _ in range(slots):
            made.append(bind_inet(host, port))
            port = made[0].getsockname()[1]
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return made


def bind_inet(host: str, port: int) -> socket.socket:
    """A bound socket that shares its port with its siblings of the other slots."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def refuse_shared(host: str, port: int) -> None:
    """Raise OSError if the port is in use: SO_REUSEPORT alone would share it with another hub."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind((host, port))


def set_options(sock: socket.socket) -> None:
    """Options of every accepted connection; on Linux it inherits them from the listener."""
    for option, value in (
        (socket.TCP_KEEPIDLE, KEEPALIVE_IDLE),
        (socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL),
        (socket.TCP_KEEPCNT, KEEPALIVE_COUNT),
        (socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
        (socket.TCP_NODELAY, 1),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
