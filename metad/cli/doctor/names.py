"""Checks of names: the hub's own, its addresses and their names, the MX of its domains."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator

from metad.cli.doctor import mx
from metad.cli.doctor.mx import DnsError
from metad.cli.doctor.result import Result, error, ok, warning
from metad.config.model import Config

MOST_DOMAINS = 20
Exchangers = Callable[[str], list[tuple[int, str]]]


def check_names(config: Config, domains: Iterable[str], *, is_mx: bool) -> Iterator[Result]:
    """`is_mx`: other machines send mail here directly, so names matter."""
    host = config.hostname.rstrip(".").lower()
    if not is_mx:
        yield ok("names", "no listener for mail from other machines: DNS is not looked at")
        return
    if "." not in host:
        yield error(
            "host name", f"hostname is {host!a}, which is no full name", 'set hostname = "mx1.…"'
        )
        return
    yield from check_host(host)
    asked = mx.servers()
    yield from check_mx(host, domains, lambda domain: mx.mail_exchangers(domain, asked))


def check_host(host: str) -> Iterator[Result]:
    """Its addresses, whether they are this machine's, and whether they resolve back."""
    addresses = addresses_of(host)
    if not addresses:
        yield error(
            "host name",
            f"{host} has no address in DNS",
            "add an A or AAAA record, or mend hostname",
        )
        return
    yield ok("host name", f"{host} has the address {', '.join(addresses)}")
    if not any(map(is_ours, addresses)):
        yield warning(
            "host name", f"no address of {host} is this machine's",
            "right behind NAT or a balancer; otherwise mend the A record or hostname",
        )  # fmt: skip
    for address in addresses:
        if ipaddress.ip_address(address).is_loopback:
            yield warning(
                "host name", f"{host} is {address} here", "look at /etc/hosts: others see DNS only"
            )
            continue
        name = name_of(address)
        if name is None or name.rstrip(".").lower() != host:
            yield warning(
                "PTR", f"{address} leads back to {name or 'no name'}, not to {host}",
                "ask whose network it is for the PTR; metad sends no mail, so few will mind",
            )  # fmt: skip


def check_mx(host: str, domains: Iterable[str], exchangers: Exchangers) -> Iterator[Result]:
    """Whether mail for each domain is sent here."""
    left = sorted(domains)
    good = 0
    for domain in left[:MOST_DOMAINS]:
        try:
            found = [name for _, name in exchangers(domain)]
        except DnsError as problem:
            yield warning("MX", f"{domain}: {problem}", "look at /etc/resolv.conf and the network")
            continue
        if host in found:
            good += 1
        elif found:
            yield warning(
                "MX", f"{domain} has the MX {', '.join(found)}, not {host}",
                "right if they relay to this hub; otherwise change the record",
            )  # fmt: skip
        else:
            yield error("MX", f"{domain} has no MX", f"add: {domain}. MX 10 {host}.")
    if good:
        yield ok("MX", f"{good} of {min(len(left), MOST_DOMAINS)} domains have {host} as MX")
    if len(left) > MOST_DOMAINS:
        yield ok("MX", f"{len(left) - MOST_DOMAINS} more domains were not looked at")


def addresses_of(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(one[4][0]) for one in found))


def name_of(address: str) -> str | None:
    try:
        return socket.getnameinfo((address, 0), socket.NI_NAMEREQD)[0]
    except OSError:
        return None


def is_ours(address: str) -> bool:
    """Whether a socket can be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True
