"""Connections to the monitor whose request is incomplete.

Rules of this file:

* A request is answered only when its head has arrived, so answering never waits for a client: a
  silent or slow one delays no scrape and no heartbeat.
* The head is examined in the kernel's buffer, and stays there for the server.
* A connection has ten seconds; if there are too many, the one that has waited longest is closed.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress

from metad.monitor.server import TIMEOUT_SECONDS, MonitorServer

MOST = 64
# Bytes of a request's head, its first line included.
HEAD = 16_384
# An answer fits in the socket's buffer, so that the server never waits for a client that does not
# read it.
ANSWER = 1 << 20
_EDGE = select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP


class Visitors:
    """The visitors of one non-blocking listening socket."""

    def __init__(self, listening: socket.socket, server: MonitorServer) -> None:
        self._listening = listening
        self._server = server
        self._epoll = select.epoll()
        # By descriptor, the oldest first: the connection, the peer and until when it may wait.
        self._waiting: dict[int, tuple[socket.socket, object, float]] = {}
        listening.setblocking(False)

    def __len__(self) -> int:
        return len(self._waiting)

    def fileno(self) -> int:
        """Readable when a waiting connection has sent something."""
        return self._epoll.fileno()

    def close(self) -> None:
        for fd in list(self._waiting):
            self._close(fd)
        self._epoll.close()

    def accept(self) -> None:
        """Accept all pending connections."""
        for _ in range(MOST):
            try:
                client, peer = self._listening.accept()
            except OSError:
                return
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ANSWER)
            if len(self._waiting) >= MOST:
                self._close(next(iter(self._waiting)))
            until = time.monotonic() + TIMEOUT_SECONDS
            self._waiting[client.fileno()] = (client, peer or ("unix", 0), until)
            self._epoll.register(client, _EDGE)
            self._look(client.fileno())

    def serve(self) -> None:
        """Answer the requests that are complete, and close connections that waited too long."""
        for fd, _ in self._epoll.poll(0):
            self._look(fd)
        now = time.monotonic()
        for fd in [fd for fd, (_, _, until) in self._waiting.items() if now > until]:
            self._close(fd)

    def _look(self, fd: int) -> None:
        if fd not in self._waiting:
            return
        client, peer, _ = self._waiting[fd]
        try:
            head = client.recv(HEAD, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            head = b""
        if b"\r\n\r\n" in head or b"\n\n" in head:
            self._forget(fd)
            client.settimeout(TIMEOUT_SECONDS)
            with suppress(OSError):
                self._server.answer(client, peer)
        elif not head or len(head) >= HEAD:
            self._close(fd)

    def _close(self, fd: int) -> None:
        client, _, _ = self._waiting[fd]
        self._forget(fd)
        client.close()

    def _forget(self, fd: int) -> None:
        del self._waiting[fd]
        with suppress(OSError):
            self._epoll.unregister(fd)
