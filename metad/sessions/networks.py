"""Client networks: what counts as one client for a limit, and lists of networks from the settings.

One client is an IPv4 address or an IPv6 /64, the smallest allocation to a subscriber (RFC 6177).
"local" is the peer of a Unix socket: it belongs to no network.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

LOCAL = "local"
_PREFIX = 8  # octets of an IPv6 address that form its network


def network_of(client: str) -> str:
    """The client's network, for counting and logging."""
    if ":" not in client:
        return client
    try:
        packed = socket.inet_pton(socket.AF_INET6, client.partition("%")[0])
    except OSError:
        return client
    prefix = packed[:_PREFIX] + bytes(16 - _PREFIX)
    return socket.inet_ntop(socket.AF_INET6, prefix) + "/64"


def is_near(client: str) -> bool:
    """Whether a client, by its address or as the peer of a Unix socket, is on this machine."""
    return client in (LOCAL, "::1") or client.startswith("127.")


class Networks:
    """A list of networks in CIDR form, as in the configuration."""

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
