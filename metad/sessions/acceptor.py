"""Accepting connections that begin with a PROXY header, a TLS handshake, or both.

The header is read from the bare socket, without a single octet beyond it: the TLS handshake may
follow immediately.

Rules of this file:

* A client that is not a trusted proxy is disconnected without a reply; so is a proxy that sends no
  header in time.
* A connection that is opened and closed, as health checks do, is not logged.
* LOCAL and UNKNOWN keep the socket's address; a client behind a proxy is never near.
* A client is admitted before its handshake, which is the most expensive step.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from functools import partial
from typing import Any, cast

from metad import limits
from metad.config.model import Listener
from metad.protocol import proxy
from metad.sessions.client import Client, client_at, peer_name
from metad.sessions.connection import Service
from metad.sessions.networks import LOCAL, Networks, network_of
from metad.sessions.starttls import log_failed_handshake
from metad.system.accepting import Accepting
from metad.tls.certificates import Certificates


class Acceptor:
    """Accepts connections on one listening socket for a service."""

    def __init__(self, service: Service, listener: Listener, sock: socket.socket) -> None:
        self.service = service
        self.context = service.context
        self._is_proxied = listener.proxy
        self._trusted = Networks(listener.trusted_proxies)
        self._tasks: set[asyncio.Task[None]] = set()
        log = partial(self.context.log.line, "connect")
        self._accepting = Accepting(self.context.loop, sock, self._arrived, log)

    def close(self) -> None:
        """Stop accepting.  Idempotent."""
        self._accepting.close()

    def _arrived(self, sock: socket.socket, peer: Any) -> None:
        address = peer_name(peer)
        if not self._is_proxied:
            self.begin(sock, client_at(address))
        elif address == LOCAL or address in self._trusted:
            Arrival(self, sock, address)
        else:
            text = f"reject: client={address}: not a trusted proxy"
            self.context.log.limited_line(network_of(address), "connect", text)
            sock.close()

    def begin(self, sock: socket.socket, client: Client) -> None:
        """The client is known: start TLS if the listener has it, then the session."""
        service = self.service
        reply = service.admit(client)
        if reply is not None:
            if service.tls != "implicit":
                with suppress(OSError):
                    sock.send(reply)
            sock.close()
            return
        task = self.context.loop.create_task(self._connect(sock, client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, sock: socket.socket, client: Client) -> None:
        context, service = self.context, self.service
        session = service.make(client)
        try:
            if service.tls == "implicit":
                await context.loop.connect_accepted_socket(
                    lambda: session,
                    sock,
                    ssl=cast(Certificates, context.certificates).context,
                    ssl_handshake_timeout=limits.TLS_HANDSHAKE,
                    ssl_shutdown_timeout=limits.TLS_SHUTDOWN,
                )
            else:
                await context.loop.connect_accepted_socket(lambda: session, sock)
        except OSError as error:  # ssl.SSLError is one
            log_failed_handshake(context, client, error)
        finally:
            if not session.has_begun:
                context.limiter.leave(client.network)
                context.check_idle()


class Arrival:
    """A connection whose PROXY header is being read."""

    def __init__(self, acceptor: Acceptor, sock: socket.socket, address: str) -> None:
        self._acceptor = acceptor
        self._socket = sock
        self._address = address
        self._header = b""
        context = acceptor.context
        self._until = context.loop.time() + limits.PROXY_HEADER
        context.sessions.add(self)
        context.loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            waiting = self._socket.recv(proxy.V2_LIMIT, socket.MSG_PEEK)
            if not waiting:
                self._close("the connection ended in it" if self._header else "")
                return
            header = proxy.parse(self._header + waiting)
            # While the header is incomplete, all input belongs to it.
            more = len(waiting) if header is None else header.length - len(self._header)
            self._header += self._socket.recv(more)
        except BlockingIOError:
            return
        except OSError:
            self._close("")
        except proxy.ProxyError as error:
            self._close(str(error))
        else:
            if header is not None:
                self._begin(header.client or self._address)

    def _begin(self, address: str) -> None:
        context = self._acceptor.context
        context.loop.remove_reader(self._socket.fileno())
        self._acceptor.begin(self._socket, Client(address, network_of(address), False))
        context.forget(self)

    def _close(self, fault: str) -> None:
        """Close the connection; `fault`: what is wrong with the header, if anything."""
        context = self._acceptor.context
        if fault:
            text = f"reject: client={self._address}: bad PROXY header: {fault}"
            context.log.limited_line(network_of(self._address), "connect", text)
        context.loop.remove_reader(self._socket.fileno())
        self._socket.close()
        context.forget(self)

    def expire(self, now: float) -> None:
        if now > self._until:
            self._close("not in time" if self._header else "")

    def drain(self) -> None:
        self._close("")

    def abort(self) -> None:
        self._close("")
