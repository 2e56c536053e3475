"""The MX records of a domain, from the name servers in /etc/resolv.conf.

Rule of this file: any answer yields facts or DnsError.
"""

from __future__ import annotations

from pathlib import Path

import dns.exception
import dns.nameserver
import dns.resolver

RESOLV_CONF = Path("/etc/resolv.conf")
SECONDS = 3.0  # for each name server


class DnsError(Exception):
    """The question could not be answered; `str()` says why."""


def servers(path: Path = RESOLV_CONF) -> list[tuple[str, int]]:
    """The name servers that the system asks; resolv.conf(5): without one, this machine's.

    Raises DnsError.
    """
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError as problem:
        raise DnsError(f"{path}: {problem.strerror}") from None
    words = [line.split() for line in lines]
    found = [
        (word[1].partition("%")[0], 53) for word in words if word[:1] == ["nameserver"] and word[1:]
    ]
    return found or [("127.0.0.1", 53)]


def mail_exchangers(domain: str, asked: list[tuple[str, int]]) -> list[tuple[int, str]]:
    """Preference and name of each MX, the preferred one first; empty if there is none.

    Raises DnsError.
    """
    if not asked:
        raise DnsError("no name server")
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers = [dns.nameserver.Do53Nameserver(*one) for one in asked]
    resolver.timeout = SECONDS
    try:
        answer = resolver.resolve(domain, "MX", lifetime=SECONDS * len(asked), search=False)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    except (dns.exception.DNSException, OSError, ValueError) as error:
        raise DnsError(str(error) or "no answer") from None
    return sorted(
        (record.preference, record.exchange.to_text(omit_final_dot=True).lower())
        for record in answer
    )
