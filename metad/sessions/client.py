"""The client at the other end of a connection."""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios
from typing import NamedTuple

from metad.sessions.networks import LOCAL, is_near, network_of


class Client(NamedTuple):
    """A client's address and everything derived from it.

    `network`: the key under which its connections, messages and failures are counted.  `near`: the
    connection does not leave this machine, so passwords in the clear are safe.
    """

    address: str
    network: str
    near: bool


def client_at(address: str) -> Client:
    """The client of a direct connection from `address`."""
    return Client(address, network_of(address), is_near(address))


def client_of(transport: asyncio.BaseTransport) -> Client:
    """The client at the other end of a transport."""
    return client_at(peer_name(transport.get_extra_info("peername")))


def has_sent(transport: asyncio.BaseTransport) -> bool:
    """Whether the socket has unread octets from the client."""
    waiting = array.array("i", [0])
    try:
        descriptor = transport.get_extra_info("socket").fileno()
        fcntl.ioctl(descriptor, termios.FIONREAD, waiting)
    except OSError:
        return False
    return waiting[0] > 0


def peer_name(peer: object) -> str:
    """The client's address for logs and trace; the peer of a Unix socket has none.

    An IPv4 client of a dual-stack socket gets the same name as on an IPv4 socket.
    """
    if isinstance(peer, tuple) and peer:
        return str(peer[0]).removeprefix("::ffff:")
    return LOCAL
