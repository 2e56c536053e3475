"""The PROXY header of a connection that comes through a proxy, versions 1 and 2, sans-IO.

Rules of this file:

* `parse` takes all octets so far and returns a header, or None for "more is needed", or raises
  ProxyError.
* The result does not depend on how the input is cut; nothing is read beyond the header's own
  length.
* Strict: any deviation from the letter of the specification is an error.  The address goes into
  trace fields and logs and decides what a client may do, so it must not be forgeable.

The specification is HAProxy's "The PROXY protocol, versions 1 & 2" (sections 2.1 and 2.2).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

# Section 2.1: the longest line of version 1, with its CR LF, has 107 octets.
V1_LIMIT: Final = 107
# Section 2.2: a receiver must take what fits 536 octets; type-length-values may be longer.  HAProxy
# itself accepts a buffer, 16 KiB; no proxy sends a quarter of that.
V2_LIMIT: Final = 4_096

_V1: Final = b"PROXY "
_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEAD: Final = 16
_PORT: Final = rb"(?:0|[1-9][0-9]{0,4})"
_LINE: Final = re.compile(
    rb"PROXY (?:UNKNOWN(?: [ -~]*)?|(TCP[46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (%b) (%b))\r\n"
    % (_PORT, _PORT)
)
_LOCAL: Final = 0x20
_PROXIED: Final = 0x21
# Family and transport -> octets of an address; None: it has none that could be an IP address.
_FAMILIES: Final = {0x00: None, 0x11: 4, 0x21: 16, 0x31: None}
_UNIX: Final = 216  # octets of the two paths of a unix socket
_UNIX_STREAM: Final = 0x31


class ProxyError(ValueError):
    """Not a PROXY header; `str()` is the reason, for the log."""


class Header(NamedTuple):
    """`length` octets are the header; `client`: the address it names, in its usual form.

    None as the client: the connection is the proxy's own (LOCAL, a health check) or of a kind
    without an IP address (UNKNOWN, unix); then the socket's address counts.
    """

    length: int
    client: str | None


def parse(data: bytes) -> Header | None:
    """The header at the start of `data`; None: it is not complete.  Raises ProxyError."""
    if data.startswith(_V2[: len(data)]):
        return _version_2(data) if len(data) >= _V2_HEAD else None
    if data.startswith(_V1[: len(data)]):
        return _version_1(data)
    raise ProxyError("no PROXY header")


def _version_1(data: bytes) -> Header | None:
    end = data.find(b"\n", 0, V1_LIMIT)
    if end < 0:
        if len(data) >= V1_LIMIT:
            raise ProxyError("the line does not end")
        return None
    match = _LINE.fullmatch(data, 0, end + 1)
    if match is None:
        raise ProxyError("malformed version 1 header")
    family, source, target, *ports = match.groups()
    if family is None:
        return Header(end + 1, None)
    if any(int(port) > 65535 for port in ports):
        raise ProxyError("a port above 65535")
    _address(family, target)
    return Header(end + 1, _address(family, source))


def _address(family: bytes, octets: bytes) -> str:
    try:
        if family == b"TCP4":
            return str(ipaddress.IPv4Address(octets.decode()))
        return _plain(ipaddress.IPv6Address(octets.decode()))
    except ValueError:
        raise ProxyError("a bad address") from None


def _version_2(data: bytes) -> Header | None:
    length = int.from_bytes(data[14:16], "big")
    if length > V2_LIMIT:
        raise ProxyError(f"a header of {length} bytes")
    command, family = data[12], data[13]
    if command not in (_LOCAL, _PROXIED):
        raise ProxyError("neither LOCAL nor PROXY of version 2")
    end = _V2_HEAD + length
    if command == _LOCAL:  # section 2.2: family and addresses are to be ignored
        return Header(end, None) if len(data) >= end else None
    size = _family_size(family, length)
    if len(data) < end:
        return None
    return Header(end, None if size is None else _packed(data[16 : 16 + size]))


def _family_size(family: int, length: int) -> int | None:
    """Octets of an address of `family`; checks that the header is long enough for it."""
    if family not in _FAMILIES:
        raise ProxyError(f"address family and transport {family:#04x}")
    size = _FAMILIES[family]
    needed = _UNIX if family == _UNIX_STREAM else 0 if size is None else 2 * size + 4
    if length < needed:
        raise ProxyError("too short for its addresses")
    return size


def _packed(octets: bytes) -> str:
    if len(octets) == 4:
        return str(ipaddress.IPv4Address(octets))
    return _plain(ipaddress.IPv6Address(octets))


def _plain(address: ipaddress.IPv6Address) -> str:
    """An IPv4-mapped IPv6 address becomes the IPv4 address: one client has one name."""
    return str(address.ipv4_mapped or address)
