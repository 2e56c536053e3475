"""A worker's listeners: makes the settings of each once, and accepts on its socket."""

from __future__ import annotations

import resource
import socket
import sys
from typing import Any, Protocol, cast

from metad.config.model import Config, Listener
from metad.protocol.pop3.machine import Personal, Pop3Settings
from metad.protocol.smtp.machine import SmtpSettings
from metad.sessions.acceptor import Acceptor
from metad.sessions.connection import Service
from metad.sessions.context import WorkerContext
from metad.sessions.networks import Networks
from metad.sessions.pop3 import TOO_MANY as TOO_MANY_POP3
from metad.sessions.pop3 import Pop3Service
from metad.sessions.rate_limiter import Caps
from metad.sessions.smtp import SmtpSession
from metad.sessions.smtp_service import NOT_LISTED, TOO_MANY, SmtpService
from metad.system.shared_memory import Cell

BACKLOG = 4096
# Descriptors not for connections: logs, index, users, spooled messages, locks.
OTHER_DESCRIPTORS = 512

DAY = 86_400


class Server(Protocol):
    """Something that accepts connections until it is closed."""

    def close(self) -> None: ...


class ServesPeers(Protocol):
    """A layer to which other nodes connect."""

    def serve_peers(self, sock: socket.socket) -> Server: ...


def caps(config: Config) -> Caps:
    """The hub's caps on connections, and the cap from this process's descriptors.

    Raises the limit on descriptors to the hard limit.
    """
    configured = config.limits
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = configured.connections
    if hard != resource.RLIM_INFINITY:
        most = min(most, max(16, hard - OTHER_DESCRIPTORS))
    return Caps(configured.connections, configured.network_connections, most)


def serve(context: WorkerContext, listener: Listener, sock: socket.socket) -> Server:
    """Begin accepting on a listener's socket."""
    if listener.protocol == "peer":
        return cast(ServesPeers, context.layer).serve_peers(sock)
    loop = context.loop
    service: Service = (_pop3 if listener.protocol == "pop3" else _smtp)(context, listener)
    if listener.proxy or listener.tls == "implicit":
        return Acceptor(service, listener, sock)
    if sock.family == socket.AF_UNIX:
        # The socket and its path belong to the master: no worker removes them.
        keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        return loop.run_until_complete(
            loop.create_unix_server(service.make, sock=sock, backlog=BACKLOG, **keep)
        )
    return loop.run_until_complete(loop.create_server(service.make, sock=sock, backlog=BACKLOG))


def _smtp(context: WorkerContext, listener: Listener) -> SmtpService:
    config = context.config

    def settings(bare_line_ends: str) -> SmtpSettings:
        return SmtpSettings(
            hostname=config.hostname,
            message_size=config.limits.message_size,
            recipients=config.limits.recipients,
            errors=config.limits.smtp_errors,
            lmtp=listener.protocol == "lmtp",
            starttls=listener.tls == "starttls",
            bare_line_ends=bare_line_ends,
            command_line=config.limits.command_line,
            strict=config.smtp.strict,
        )

    return SmtpService(
        context=context,
        tls=listener.tls,
        clients=Networks(config.smtp.clients),
        connections=Cell.SMTP_CONNECTIONS,
        open=Cell.SMTP_OPEN,
        too_many=TOO_MANY.wire,
        not_listed=NOT_LISTED.wire,
        settings=settings(config.smtp.bare_line_ends),
        repairing=settings("repair"),
        repair_networks=Networks(config.smtp.repair_networks),
        session=_session_class(context),
        proxied=listener.proxy,
    )


def _session_class(context: WorkerContext) -> type[SmtpSession]:
    if context.filters is None:
        return SmtpSession
    from metad.sessions.smtp_filtered import FilteredSmtpSession

    return FilteredSmtpSession


def _pop3(context: WorkerContext, listener: Listener) -> Pop3Service:
    config = context.config
    made: dict[tuple[bool, ...], Pop3Settings] = {}
    # CAPA before login covers every user; later changes of users show at the next start.
    least, most = context.users.extremes()
    expiry, expire_differs = context.policies.least_expiry(least)
    delay, delay_differs = context.policies.most_login_delay(most)
    common = Personal(expiry // DAY if expiry else None, delay)
    offer = ScramOffer(context)

    def settings(plaintext: bool, tls: bool) -> Pop3Settings:
        """One per combination of the properties of connections; a handful in all."""
        scram = offer.is_made()
        key = (plaintext, tls, scram)
        if key not in made:
            made[key] = Pop3Settings(
                config.hostname,
                plaintext=plaintext,
                stls=listener.tls == "starttls" and not tls,
                scram=scram,
                common=common,
                expire_differs=bool(expiry) and expire_differs,
                login_delay_differs=bool(delay) and delay_differs,
                masters=frozenset(config.pop3.master_users),
            )
        return made[key]

    return Pop3Service(
        context=context,
        tls=listener.tls,
        clients=Networks(()),
        connections=Cell.POP3_CONNECTIONS,
        open=Cell.POP3_OPEN,
        too_many=TOO_MANY_POP3,
        not_listed=b"",
        settings=settings,
        plaintext=config.pop3.plaintext,
        proxied=listener.proxy,
    )


class ScramOffer:
    """Whether SCRAM is offered: only while every user who can log in has keys, because a client
    that sees the offer does not try PLAIN.  Checked at most once a second."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._checked = float("-inf")
        self._every = False

    def is_made(self) -> bool:
        context = self._context
        setting = context.config.pop3.scram
        if setting == "auto" and context.now - self._checked >= 1.0:
            self._checked = context.now
            self._every = context.users.every_login_has_keys()
        return setting == "always" or (setting == "auto" and self._every)
