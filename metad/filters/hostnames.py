"""The name of a client, from its address: looked up in DNS in both directions, and cached.

Rules of this file:

* The system's resolver is called in threads of the loop.  If it is slow, a message goes without a
  name after `DEADLINE` seconds.
* A name that does not resolve to the address does not count (RFC 8601 section 2.7.3, "iprev").
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

DEADLINE: Final = 2.0
REMEMBERED: Final = 1024
SECONDS: Final = 300.0
# The files that the C library reads: a confined process needs access to them.
FILES: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf")


def files() -> list[Path]:
    """Those that exist, with links resolved."""
    return [Path(one).resolve() for one in FILES if Path(one).is_file()]


class Hostnames:
    """The names cached by one worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._known: dict[str, tuple[float, str]] = {}

    async def name_of(self, address: str) -> str:
        """ "" if it has none, or none was found in time."""
        now = self._loop.time()
        expires, name = self._known.get(address, (0.0, ""))
        if now < expires:
            return name
        name = ""
        with suppress(OSError, TimeoutError, UnicodeError):
            async with asyncio.timeout(DEADLINE):
                name = await self._look_up(address)
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[address] = now + SECONDS, name
        return name

    async def _look_up(self, address: str) -> str:
        name, _ = await self._loop.getnameinfo((address, 0), socket.NI_NAMEREQD)
        found = await self._loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return name if any(one[4][0] == address for one in found) else ""
