"""The client at the other end of a connection."""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios
from typing import NamedTuple

from metad.sessions.networks import LOCAL, is_near, network_of


class Client(NamedTuple):
    """A client's address and what depends on it.

    `network`: the key under which its connections, messages and failures are counted.  `near`: a
    password that it sends in the clear does not leave this machine.
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
    """Whether octets of the client lie in the socket unread."""
    waiting = array.array("i", [0])
    try:
        descriptor = transport.get_extra_info("socket").fileno()
        fcntl.ioctl(descriptor, termios.FIONREAD, waiting)
    except OSError:
        return False
    return waiting[0] > 0


def peer_name(peer: object) -> str:
    """The client's address for logs and trace; the peer of a Unix socket has none.

    An IPv4 client of a dual-stack socket gets the name that it has on an IPv4 socket.
    """
    if isinstance(peer, tuple) and peer:
        return str(peer[0]).removeprefix("::ffff:")
    return LOCAL
