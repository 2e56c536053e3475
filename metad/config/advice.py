"""Effects of a valid configuration that its author probably does not want."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from metad.config.model import Config, Listener


def advice(config: Config) -> Iterator[str]:
    """One line each; a hub starts nevertheless."""
    for listener in config.listen:
        if listener.protocol == "pop3" and listener.tls == "none" and _is_public(listener):
            yield from _plain_pop3(config, listener)
        if listener.host == "::" and listener.port:
            yield from _only_ipv6(config, listener)
    if not config.store.sync:
        yield "store.sync = false: a crash of the machine loses acknowledged mail"
    if config.dev.any_password:
        yield "dev.any_password = true: every password opens every mailbox"
    if config.dev.accept:
        yield "dev.accept: mailboxes are made for " + ", ".join(config.dev.accept)
    if config.smtp.bare_line_ends == "repair":
        yield 'smtp.bare_line_ends = "repair" applies to every client; repair_networks is safer'


def _plain_pop3(config: Config, listener: Listener) -> Iterator[str]:
    if config.pop3.plaintext == "always":
        yield f"listen {listener.address}: passwords cross the network in clear text"
    elif config.pop3.scram == "never":
        yield f"listen {listener.address}: no client can log in: no TLS, no plain text, no SCRAM"
    else:
        yield (
            f"listen {listener.address}: without TLS only SCRAM logins are offered, which few "
            "clients know; set tls"
        )


def _only_ipv6(config: Config, listener: Listener) -> Iterator[str]:
    """The two families are bound separately, so that each address has its own line and its own
    port."""
    of_ipv4 = ((one.protocol, one.host, one.port) for one in config.listen if one.path is None)
    if (listener.protocol, "0.0.0.0", listener.port) not in of_ipv4:  # noqa: S104
        yield (
            f"listen {listener.address}: serves IPv6 only; for IPv4 add a [[listen]] with "
            f'address = "0.0.0.0:{listener.port}"'
        )


def _is_public(listener: Listener) -> bool:
    """Whether other machines can connect, so that a client is not on loopback."""
    if listener.path is not None:
        return False
    if listener.proxy or listener.port is None:  # behind a proxy, or passed under a name
        return True
    return not ipaddress.ip_address(listener.host).is_loopback
