"""Client networks: what is one client for a limit, and who belongs to a list in the configuration.

An IPv4 address is one client; of IPv6 a /64 is, which is what one subscriber is given at least
(RFC 6177).  "local" is the peer of a unix socket: no network, and in none.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

LOCAL = "local"
_PREFIX = 8  # octets of an IPv6 address that are its network


def network_of(client: str) -> str:
    """The client's network, as it is counted and shown."""
    if ":" not in client:
        return client
    try:
        packed = socket.inet_pton(socket.AF_INET6, client.partition("%")[0])
    except OSError:
        return client
    prefix = packed[:_PREFIX] + bytes(16 - _PREFIX)
    return socket.inet_ntop(socket.AF_INET6, prefix) + "/64"


def is_near(client: str) -> bool:
    """Whether a client's address, or a unix socket's peer, is on this machine."""
    return client in (LOCAL, "::1") or client.startswith("127.")


class Networks:
    """A list of networks in CIDR form, as the configuration has them."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(one) for one in networks)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, client: str) -> bool:
        try:
            address = ipaddress.ip_address(client.partition("%")[0])
        except ValueError:
            return False
        return any(address in network for network in self._networks)
