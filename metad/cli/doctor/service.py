"""Checks of the service: does the hub run, do its ports answer, are its certificates valid."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from metad.cli.doctor.result import Result, error, ok, warning
from metad.config.model import Config, Listener
from metad.errors import MetadError
from metad.tls import store as tls_store

SECONDS = 5.0
_GREETINGS = {"smtp": b"220", "lmtp": b"220", "pop3": b"+OK"}


def check_hub(facts: Mapping[str, Any] | None) -> Iterator[Result]:
    """`facts`: the hub's status; None if none runs."""
    if facts is None:
        yield warning("hub", "no hub is running", "metad start, or systemctl start metad")
        return
    state = facts.get("state")
    problems = facts.get("problems", [])
    if not problems:
        yield ok("hub", f"version {facts.get('version')}, {state}, pid {facts.get('pid')}")
    make = error if state == "refusing" else warning
    for one in problems:
        yield make("hub", one["problem"], one["remedy"])


def check_ports(config: Config, facts: Mapping[str, Any]) -> Iterator[Result]:
    """Whether each port of a running hub sends a correct greeting."""
    for given in facts.get("listen", []):
        listener = next((one for one in config.listen if _is_of(one, given)), None)
        if given["protocol"] == "peer":  # it speaks TLS; the check of the cluster reaches others
            continue
        name = f"{given['protocol']} {given['address']}"
        if listener is not None and listener.proxy:
            yield ok("ports", f"{name} expects a PROXY header: not tried")
            continue
        try:
            greeting = _greeting(given["address"], listener)
        except OSError as problem:
            yield error(
                "ports", f"{name} does not answer: {problem.strerror or problem}",
                "see metad status and the log; a firewall on this machine?",
            )  # fmt: skip
            continue
        if greeting.startswith(_GREETINGS.get(given["protocol"], b"")):
            yield ok("ports", f"{name} answers")
        else:
            text = greeting.decode("ascii", "replace").strip()
            yield error(
                "ports", f"{name} greets with {text!a}", "another program, or a limit: see the log"
            )


def _is_of(listener: Listener, given: Mapping[str, Any]) -> bool:
    port = given["address"].rpartition(":")[2]
    return bool(listener.protocol == given["protocol"] and port == str(listener.port or port))


def _greeting(address: str, listener: Listener | None) -> bytes:
    with _connected(address) as sock:
        sock.settimeout(SECONDS)
        if listener is not None and listener.tls == "implicit":
            context = ssl.create_default_context()
            context.check_hostname = False  # another check examines the certificate
            context.verify_mode = ssl.CERT_NONE
            with context.wrap_socket(sock) as secure:
                return secure.recv(512)
        return sock.recv(512)


def _connected(address: str) -> socket.socket:
    """Connect to a listener's address; "any address" means this machine."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(SECONDS)
            sock.connect(address.removeprefix("unix:"))
        except OSError:
            sock.close()
            raise
        return sock
    host, _, port = address.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104
    return socket.create_connection((host, int(port)), SECONDS)


def check_certificates(config: Config) -> Iterator[Result]:
    if not tls_store.wanted(config):
        yield ok("certificate", "no listener has TLS")
        return
    try:
        contexts = tls_store.load_contexts(config)
    except MetadError as problem:
        yield error("certificate", str(problem), "metad tls install")
        return
    if contexts is None:
        yield error("certificate", "there is none", "metad tls install, or metad tls self-signed")
        return
    for line in contexts.bad:
        yield error("certificate", line, "metad tls install it again, or metad tls remove it")
    names = sorted({name for one in contexts.certificates for name in one.facts.names})
    if contexts.find(config.hostname) is contexts.default and not _covers(names, config.hostname):
        yield warning(
            "certificate", f"none is for {config.hostname}: {', '.join(names) or 'no name'}",
            "get one for the host name that clients use",
        )  # fmt: skip
    lines = tls_store.expiry_warnings(config, datetime.now(UTC))
    for line in lines:
        yield warning("certificate", line, "renew it: metad tls install")
    if not lines and not contexts.bad:
        first = min(one.facts.not_after for one in contexts.certificates)
        yield ok("certificate", f"valid until {first:%Y-%m-%d}")


def _covers(names: list[str], host: str) -> bool:
    return host.lower() in names or "*." + host.lower().partition(".")[2] in names
