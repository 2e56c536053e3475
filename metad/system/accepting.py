"""Accepts connections on a listening socket.

Rules of this file:

* One turn of the loop accepts a bounded number, so that other sessions get their turn.
* After a failure, such as too few descriptors, it pauses: the listener stays readable, and the loop
  would spin.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

ACCEPTS: Final = 64
PAUSE: Final = 1.0  # seconds


class Accepting:
    """Calls `accepted(socket, peer's address)` for each connection, until it is closed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        accepted: Callable[[socket.socket, Any], None],
        report: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._accepted = accepted
        self._report = report
        self._is_open = True
        self._resume()

    def _resume(self) -> None:
        if self._is_open:
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Stop accepting; the socket stays open.  Idempotent."""
        self._is_open = False
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, peer = self._socket.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._report(f"warning: accept: {error.strerror}")
                self._loop.remove_reader(self._socket.fileno())
                self._loop.call_later(PAUSE, self._resume)
                return
            sock.setblocking(False)
            self._accepted(sock, peer)
