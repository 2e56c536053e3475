"""A real hub with listeners of any kind, and clients that speak to them over TLS or a proxy.

Rules of this file:

* A listener is named by the test, and found by that name: `hub.places["pop3s"]`.
* Certificates are made once per run, by the hub's own command, and installed by it.
* Clients come from addresses of 127/8 that a test chooses: each is a network of its own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from metad.cli.tls import make_self_signed
from tests.support.clients import Line, Pop3Line, SmtpLine
from tests.support.hub import DEADLINE, HOSTNAME, Hub, free_ports

# What a listener is, by the name that the tests use.
KINDS: dict[str, dict[str, object]] = {
    "smtp": {"protocol": "smtp"},
    "pop3": {"protocol": "pop3"},
    "starttls": {"protocol": "smtp", "tls": "starttls"},
    "smtps": {"protocol": "smtp", "tls": "implicit"},
    "stls": {"protocol": "pop3", "tls": "starttls"},
    "pop3s": {"protocol": "pop3", "tls": "implicit"},
    "lmtp": {"protocol": "lmtp"},
    "lmtp-unix": {"protocol": "lmtp", "unix": "lmtp"},
    "lmtp-starttls": {"protocol": "lmtp", "tls": "starttls"},
    "smtp6": {"protocol": "smtp", "host": "::1"},
    "pop36": {"protocol": "pop3", "host": "::1"},
    "proxied": {"protocol": "smtp", "proxy": True, "trusted_proxies": ["127.0.0.1"]},
    "proxied-pop3": {"protocol": "pop3", "proxy": True, "trusted_proxies": ["127.0.0.0/24"]},
    "proxied-pop3s": {
        "protocol": "pop3", "proxy": True, "trusted_proxies": ["127.0.0.1"], "tls": "implicit",
    },
    "proxied-smtps": {
        "protocol": "smtp", "proxy": True, "trusted_proxies": ["127.0.0.1"], "tls": "implicit",
    },
    "proxied-starttls": {
        "protocol": "smtp", "proxy": True, "trusted_proxies": ["127.0.0.1"], "tls": "starttls",
    },
}  # fmt: skip


class WideHub(Hub):
    """A hub with the listeners named.  `places`: name -> (host, port), or the path of a socket."""

    def __init__(
        self,
        kinds: Iterable[str],
        mailboxes: Iterable[str] = ("alice",),
        settings: str = "",
        **store: object,
    ) -> None:
        self.kinds = list(kinds)
        self.places: dict[str, tuple[str, int] | str] = {}
        super().__init__(mailboxes, settings, **store)
        if any("tls" in KINDS[kind] for kind in self.kinds):
            self.install(HOSTNAME)

    def configure(self, settings: str = "", **store: object) -> None:
        keys = {"workers": 2, "log_size": "8MiB"} | store
        lines = [f'hostname = "{HOSTNAME}"', f"data = {json.dumps(str(self.data))}"]
        if os.geteuid() == 0:
            lines.append('user = "nobody"')
        for kind, port in zip(self.kinds, free_ports(len(self.kinds)), strict=True):
            lines += ["[[listen]]", *self._listener(kind, KINDS[kind], port)]
        lines += ["[store]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        self.config.write_text("\n".join([*lines, settings, ""]))
        self.config.chmod(0o644)
        self.smtp_port = self._port("smtp")
        self.pop3_port = self._port("pop3")

    def _listener(self, name: str, kind: Mapping[str, object], port: int) -> list[str]:
        keys = {key: value for key, value in kind.items() if key not in ("unix", "host")}
        if "unix" in kind:
            directory = self.home / "sockets"
            directory.mkdir(exist_ok=True)
            directory.chmod(0o777)
            path = str(directory / str(kind["unix"]))
            self.places[name] = path
            keys["address"] = f"unix:{path}"
        else:
            host = str(kind.get("host", "127.0.0.1"))
            self.places[name] = (host, port)
            keys["address"] = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return [f"{key} = {json.dumps(value)}" for key, value in keys.items()]

    def _port(self, name: str) -> int:
        place = self.places.get(name)
        return place[1] if isinstance(place, tuple) else 0

    def announced(self) -> list[str]:
        said = []
        for kind in self.kinds:
            place = self.places[kind]
            if isinstance(place, str):
                shown = f"unix:{place}"
            else:
                shown = f"[{place[0]}]:{place[1]}" if ":" in place[0] else f"{place[0]}:{place[1]}"
            said.append(f"listening {KINDS[kind]['protocol']} {shown}")
        return said

    def install(self, *names: str) -> ssl.SSLContext:
        """Give the hub a certificate for `names`; a client's context that trusts just that one."""
        chain, key = certificate(*names)
        pair = self.home / "pair.pem"
        pair.write_text(chain + key)
        pair.chmod(0o644)
        self.run("tls", "install", "--cert", str(pair))
        return trusting(chain)

    @property
    def trust(self) -> ssl.SSLContext:
        """A client's context that trusts the hub's own certificate."""
        return trusting(certificate(HOSTNAME)[0])


@functools.cache
def certificate(*names: str) -> tuple[str, str]:
    """(certificate, key) as PEM, the same for the same names during a run."""
    return make_self_signed(list(names))


def trusting(chain: str) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=chain)


def connect(place: tuple[str, int] | str, source: str | None = None) -> socket.socket:
    """A connection to a listener, from an address of this machine."""
    if isinstance(place, str):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(DEADLINE)
        connection.connect(place)
        return connection
    return socket.create_connection(place, DEADLINE, (source, 0) if source else None)


class _Over(Line):
    """A Line over a socket that is there already."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.input = connection.makefile("rb")

    def secure(self, context: ssl.SSLContext, name: str = HOSTNAME) -> None:
        """Turn to TLS."""
        self.input.close()
        self.socket = context.wrap_socket(self.socket, server_hostname=name)
        self.input = self.socket.makefile("rb")

    def rest(self) -> bytes:
        """Everything until the end of the connection."""
        with contextlib.suppress(ConnectionResetError):
            return self.input.read()
        return b"(reset)"


class Smtp(_Over, SmtpLine):
    """An SMTP client: the greeting is not read yet."""


class Pop3(_Over, Pop3Line):
    """A POP3 client: the greeting is not read yet."""


def smtp(hub: WideHub, kind: str, source: str | None = None, *, hello: str = "EHLO") -> Smtp:
    """A client that has sent EHLO."""
    client = Smtp(connect(hub.places[kind], source))
    if KINDS[kind].get("tls") == "implicit":
        client.secure(hub.trust)
    client.reply(b"220")
    client.say(f"{hello} client.example.test")
    return client


def pop3(hub: WideHub, kind: str, source: str | None = None) -> Pop3:
    client = Pop3(connect(hub.places[kind], source))
    if KINDS[kind].get("tls") == "implicit":
        client.secure(hub.trust)
    assert client.line().startswith(b"+OK")
    return client


def wait_for_lines(hub: Hub, word: str, count: int = 1) -> list[str]:
    """Lines of the hub's log with a word in them, once there are as many."""
    deadline = time.monotonic() + DEADLINE
    while len(found := log_lines(hub, word)) < count:
        assert time.monotonic() < deadline, f"no {count} lines with {word!r}"
        select.select([], [], [], 0.01)
    return found


def log_lines(hub: Hub, word: str) -> list[str]:
    """Lines of the hub's log with a word in them."""
    return [line for line in Path(hub.log).read_text().splitlines() if word in line]
