"""Authentication-Results (RFC 8601): made from rspamd's symbols; recognises forged ones.

Sans-IO.  Rules of this file:

* Only what rspamd found is stated; a method that it did not check is not named.
* A property is copied only if its syntax is that of a domain or an address.
* A field claims to be ours if its authserv-id is ours, after any comments, in any case.  An
  unparseable one counts as such a claim (RFC 8601 section 5 demands the removal of those).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from metad.filters.results import Symbol

NAME: Final = "Authentication-Results"

_SPF: Final = {
    "R_SPF_ALLOW": "pass",
    "R_SPF_PLUSALL": "pass",
    "R_SPF_FAIL": "fail",
    "R_SPF_SOFTFAIL": "softfail",
    "R_SPF_NEUTRAL": "neutral",
    "R_SPF_DNSFAIL": "temperror",
    "R_SPF_PERMFAIL": "permerror",
    "R_SPF_NA": "none",
}
_DKIM: Final = {
    "R_DKIM_ALLOW": "pass",
    "R_DKIM_REJECT": "fail",
    "R_DKIM_TEMPFAIL": "temperror",
    "R_DKIM_PERMFAIL": "permerror",
    "R_DKIM_NA": "none",
}
_DMARC: Final = {
    "DMARC_POLICY_ALLOW": "pass",
    "DMARC_POLICY_ALLOW_WITH_FAILURES": "pass",
    "DMARC_POLICY_REJECT": "fail",
    "DMARC_POLICY_QUARANTINE": "fail",
    "DMARC_POLICY_SOFTFAIL": "fail",
    "DMARC_DNSFAIL": "temperror",
    "DMARC_BAD_POLICY": "permerror",
    "DMARC_NA": "none",
}
_ARC: Final = {
    "ARC_ALLOW": "pass",
    "ARC_REJECT": "fail",
    "ARC_INVALID": "fail",
    "ARC_DNSFAIL": "fail",
    "ARC_NA": "none",
}
# DKIM signatures reported per message.
MOST_SIGNATURES: Final = 5

_DOMAIN: Final = re.compile(r"(?=.{1,253}(?![\w.-]))[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
_SIGNATURE: Final = re.compile(rf"({_DOMAIN.pattern})(?::s=({_DOMAIN.pattern}))?(?::.*)?")
_ADDRESS: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.@-]{1,320}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")
# An authserv-id after blanks and comments, which may be nested (RFC 5322 section 3.2.2).
_QUOTED: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ID: Final = re.compile(rb"[^\s;()\"]+")
_ENDS: Final = re.compile(rb"[\s;(]|\Z")


def results(
    authserv_id: str, symbols: Mapping[str, Symbol], sender: str, helo: str
) -> tuple[str, str] | None:
    """The field, name and value; None if rspamd has checked nothing."""
    found = [
        *_spf(symbols, sender, helo),
        *_dkim(symbols),
        *_dmarc(symbols),
        *(f"arc={result}" for result in _of(_ARC, symbols)),
    ]
    if not found:
        return None
    return NAME, "; ".join([authserv_id, *found])


def is_ours(value: bytes, authserv_id: str) -> bool:
    """Whether an Authentication-Results field with this value claims to be from `authserv_id`."""
    rest = _behind_comments(value)
    if rest is None:
        return True
    found = _QUOTED.match(rest) or _ID.match(rest)
    if found is None or not _ENDS.match(rest, found.end()):
        return True
    name = found[0]
    if name.startswith(b'"'):
        name = re.sub(rb"\\(.)", rb"\1", found[1], flags=re.DOTALL)
    return name.strip().lower().rstrip(b".") == authserv_id.lower().encode()


def _behind_comments(value: bytes) -> bytes | None:
    """The text after leading comments; None if one does not end."""
    at = depth = 0
    while at < len(value):
        one = value[at : at + 1]
        if one == b"(":
            depth += 1
        elif one == b")" and depth:
            depth -= 1
        elif one == b"\\" and depth:
            at += 1
        elif not depth and not one.isspace():
            return value[at:]
        at += 1
    return None if depth else b""


def _of(table: Mapping[str, str], symbols: Mapping[str, Symbol]) -> list[str]:
    return [result for name, result in table.items() if name in symbols][:1]


def _spf(symbols: Mapping[str, Symbol], sender: str, helo: str) -> list[str]:
    name, value = ("smtp.mailfrom", sender) if sender else ("smtp.helo", helo)
    shown = f" {name}={value}" if _ADDRESS.fullmatch(value) else ""
    return [f"spf={result}{shown}" for result in _of(_SPF, symbols)]


def _dkim(symbols: Mapping[str, Symbol]) -> list[str]:
    found: list[str] = []
    for name, result in _DKIM.items():
        symbol = symbols.get(name)
        if symbol is None:
            continue
        signatures = [one for one in map(_SIGNATURE.fullmatch, symbol.options) if one]
        if not signatures:
            found.append(f"dkim={result}")
        for one in signatures:
            selector = f" header.s={one[2]}" if one[2] else ""
            found.append(f"dkim={result} header.d={one[1]}{selector}")
    return found[:MOST_SIGNATURES]


def _dmarc(symbols: Mapping[str, Symbol]) -> list[str]:
    for name, result in _DMARC.items():
        symbol = symbols.get(name)
        if symbol is None:
            continue
        options = symbol.options
        domain = _DOMAIN.match(options[0]) if options and result != "none" else None
        policy = options[-1] if len(options) > 1 else ""
        shown = f" (p={policy})" if policy in ("none", "quarantine", "reject") else ""
        return [f"dmarc={result}{shown}" + (f" header.from={domain[0]}" if domain else "")]
    return []
