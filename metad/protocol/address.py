"""Mail addresses: RFC 5321 section 4.1.2 with the UTF-8 of RFC 6531 section 3.3.

Rules of this file:

* Text in, text out; decoding the octets is the caller's.
* No address accepted here has a control character, a line end, or a blank outside quotes, so it can
  be copied into a header.
* Only the syntax of an address is checked here, not whether it exists.

Limits, in octets of UTF-8.  RFC 5321 section 4.5.3.1 requires at least 64 and 255; bounce addresses
of mailing lists (VERP, SRS) often exceed 64 in the local part, and Postfix accepts them.  Together
they stay below the 511 octets of an LMDB key.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, NamedTuple

import idna

from metad import limits

LOCAL_LIMIT: Final = 192
DOMAIN_LIMIT: Final = limits.DOMAIN
LABEL_LIMIT: Final = 63  # RFC 1035 section 2.3.4

# A fast path for nearly all addresses: plain ASCII, no quotes, no literal.
_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_PLAIN: Final = re.compile(rf"({_ATOM}(?:\.{_ATOM})*)@({_LABEL}(?:\.{_LABEL})*)")

# The whole grammar.  Characters above U+007F pass here and are checked afterwards.  The classes are
# negated: Python needs 20 ms to compile one that extends to U+10FFFF, at each start of each
# command.
_TEXT: Final = r'[^\0-\x20"(),.:;<>@\[\\\]\x7f]+'  # atext, RFC 5322 section 3.2.3
_DOT_STRING: Final = re.compile(rf"{_TEXT}(?:\.{_TEXT})*")
_QUOTED: Final = re.compile(r'"((?:[ !#-\[\]-~\x80-\U0010FFFF]|\\[ -~])*)"')
_LETTER: Final = r"[^\0-/:-@\[-^`{-\x7f]"  # digits and _ too
_MIDDLE: Final = r"[^\0-,./:-@\[-^`{-\x7f]"  # and -
_U_LABEL: Final = re.compile(rf"{_LETTER}(?:{_MIDDLE}*{_LETTER})?")
_LITERAL: Final = re.compile(r"\[(?:[0-9.]+|[A-Za-z0-9-]*[A-Za-z0-9]:[!-Z^-~]+)\]")
_ESCAPE: Final = re.compile(r"\\(.)")
_JOINERS: Final = str.maketrans("", "", "\u200c\u200d")  # parts of words in some scripts


class AddressError(ValueError):
    """Not an address; `str()` is the reason, without the address."""


class Mailbox(NamedTuple):
    """Both parts as given, but `local` without its quotes and escapes."""

    local: str
    domain: str

    def __str__(self) -> str:
        return f"{quote_local(self.local)}@{self.domain}"


def parse_mailbox(text: str) -> Mailbox:
    """`local@domain`; raises AddressError."""
    plain = _PLAIN.fullmatch(text)
    if plain is not None:
        local, domain = plain.groups()
    else:
        quoted = _QUOTED.match(text)
        end = quoted.end() if quoted else text.rfind("@")
        if end < 0 or text[end : end + 1] != "@":
            raise AddressError("an address is a local part, @ and a domain")
        local, domain = parse_local(text[:end]), text[end + 1 :]
        _check_domain(domain)
    _check_length(local, LOCAL_LIMIT, "local part")
    _check_length(domain, DOMAIN_LIMIT, "domain")
    return Mailbox(local, domain)


def parse_local(text: str) -> str:
    """A local part alone, without its quotes; raises AddressError."""
    if _DOT_STRING.fullmatch(text):
        local = text
    else:
        quoted = _QUOTED.fullmatch(text)
        if quoted is None:
            raise AddressError("bad local part")
        local = _ESCAPE.sub(r"\1", quoted[1])
    _check_unicode(local)
    _check_length(local, LOCAL_LIMIT, "local part")
    return local


def quote_local(local: str) -> str:
    """The local part in its written form, in quotes only if needed."""
    if _DOT_STRING.fullmatch(local):
        return local
    escaped = local.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def fold(text: str) -> str:
    """The canonical spelling under which an address is looked up; raises AddressError.

    Both parts in lower case, the local part in Unicode's NFC, the domain in A-labels (RFC 5890),
    quotes and escapes only where they are needed: `"Jo.Doe"@Example.ORG` is `jo.doe@example.org`,
    `jo@Bücher.example` is `jo@xn--bcher-kva.example`.
    """
    if _PLAIN.fullmatch(text):
        folded = text.lower()
        if len(folded) <= LOCAL_LIMIT:  # so both parts are within their limits
            return folded
    local, domain = parse_mailbox(text)
    mailbox = Mailbox(_fold_part(local), fold_domain(domain))
    _check_length(mailbox.local, LOCAL_LIMIT, "local part")
    _check_length(mailbox.domain, DOMAIN_LIMIT, "domain")
    return str(mailbox)


def is_postmaster(address: str, hostname: str) -> bool:
    """Whether `address` is the postmaster of the host itself: at its name, or at any address
    literal, because mail for a literal reaches only the host that has the address."""
    local, _, domain = address.lower().rpartition("@")
    return local == "postmaster" and (domain == hostname.lower() or domain.startswith("["))


def _fold_part(text: str) -> str:
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())


def fold_domain(domain: str) -> str:
    """The canonical spelling of a domain: lower case, U-labels as A-labels; raises AddressError.

    An A-label that does not decode stays as it is, like any other name.
    """
    if domain.isascii():
        return domain.lower()
    try:
        mapped = idna.uts46_remap(domain, std3_rules=False, transitional=False)
        labels = [
            part if part.isascii() else idna.alabel(part).decode() for part in mapped.split(".")
        ]
    except idna.IDNAError:
        raise AddressError("a domain that IDNA does not allow") from None
    folded = ".".join(labels).lower()
    _check_domain(folded)
    return folded


def _check_domain(domain: str) -> None:
    if domain.startswith("["):
        if not _LITERAL.fullmatch(domain):
            raise AddressError("bad address literal")
        return
    for label in domain.split("."):
        if not _U_LABEL.fullmatch(label):
            raise AddressError("bad domain")
        _check_length(label, LABEL_LIMIT if label.isascii() else DOMAIN_LIMIT, "domain label")
    _check_unicode(domain)


def _check_unicode(text: str) -> None:
    """Refuse control characters, unusual blanks, line and paragraph separators, lone surrogates and
    the like."""
    if not (text.isascii() or text.translate(_JOINERS).isprintable()):
        raise AddressError("a character that no address can have")


def _check_length(text: str, limit: int, what: str) -> None:
    # A character has at most four octets, so most addresses are short enough in any case.
    if len(text) * 4 > limit and len(text.encode()) > limit:
        raise AddressError(f"{what} too long (over {limit} bytes)")
