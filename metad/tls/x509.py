"""What a hub needs to know about a certificate: its names and its validity.

Rules of this file:

* It only reads DER: OpenSSL checks chains and signatures.
* Bounded by its input; any input yields facts or ValueError.

RFC 5280 section 4.1 (Certificate, Validity), 4.2.1.6 (subjectAltName); X.690 for DER.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
# Not by strptime, which Python loads lazily, for example in a chroot, where it is missing.
_STAMP: Final = re.compile(r"([0-9]{4})" + r"([0-9]{2})" * 5 + "Z")
_SUBJECT_ALT_NAME: Final = bytes.fromhex("551d11")  # 2.5.29.17
_COMMON_NAME: Final = bytes.fromhex("550403")  # 2.5.4.3
_DNS_NAME: Final = 0x82
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
_VERSION: Final = 0xA0
_EXTENSIONS: Final = 0xA3
_OCTET_STRING: Final = 0x04


class Facts(NamedTuple):
    """`names`: domains, lower-cased, a leading "*." kept; the common name if there is no other."""

    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime


class _Node(NamedTuple):
    tag: int
    content: bytes

    def children(self) -> list[_Node]:
        return list(_nodes(self.content))


def read_pem(pem: str) -> Facts:
    """Read the first certificate in `pem`, which is the server's own.  Raises ValueError."""
    start, end = pem.find(_BEGIN), pem.find(_END)
    if start < 0 or end < start:
        raise ValueError("there is no certificate in it")
    try:
        der = ssl.PEM_cert_to_DER_cert(pem[start : end + len(_END)])
    except ValueError:
        raise ValueError("the certificate is not PEM") from None
    return read_der(der)


def read_der(der: bytes) -> Facts:
    """Raises ValueError."""
    try:
        fields = next(_nodes(der)).children()[0].children()
        if fields[0].tag == _VERSION:
            fields = fields[1:]
        # serial number, algorithm, issuer, validity, subject, key, then optional fields.
        before, after = (_time(node) for node in fields[3].children())
        names = _alternative_names(fields[6:]) or _common_names(fields[4])
        return Facts(tuple(names), before, after)
    except (IndexError, StopIteration, UnicodeDecodeError, RuntimeError) as error:
        raise ValueError("the certificate is not DER") from error


def _nodes(octets: bytes) -> Iterator[_Node]:
    at = 0
    while at < len(octets):
        tag, length = octets[at], octets[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            if not 1 <= size <= 4:
                raise ValueError("the certificate is not DER")
            length = int.from_bytes(octets[at : at + size], "big")
            at += size
        if at + length > len(octets):
            raise ValueError("the certificate is cut short")
        yield _Node(tag, octets[at : at + length])
        at += length


def _time(node: _Node) -> datetime:
    text = node.content.decode("ascii")
    if node.tag == _UTC_TIME:  # RFC 5280 section 4.1.2.5.1: 50 and above is 19xx
        text = ("19" if text[:2] >= "50" else "20") + text
    elif node.tag != _GENERALIZED_TIME:
        raise ValueError("the certificate has no validity")
    match = _STAMP.fullmatch(text)
    if match is None:
        raise ValueError("the certificate has no validity")
    year, month, day, hour, minute, second = map(int, match.groups())
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


def _alternative_names(optional: list[_Node]) -> list[str]:
    extensions = next((node for node in optional if node.tag == _EXTENSIONS), None)
    if extensions is None:
        return []
    for extension in extensions.children()[0].children():
        parts = extension.children()
        if parts[0].content == _SUBJECT_ALT_NAME and parts[-1].tag == _OCTET_STRING:
            general = _Node(0, parts[-1].content).children()[0].children()
            return [_text(one.content) for one in general if one.tag == _DNS_NAME]
    return []


def _common_names(subject: _Node) -> list[str]:
    pairs = [pair.children() for group in subject.children() for pair in group.children()]
    return [_text(value.content) for kind, value in pairs if kind.content == _COMMON_NAME]


def _text(octets: bytes) -> str:
    return octets.decode("utf-8").lower()
