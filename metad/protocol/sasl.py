"""SASL: what the client's responses say.

Rules of this file:

* Pure functions over octets; who asks for a password and who checks it is elsewhere.
* Strict: base64 without foreign octets or missing padding, PLAIN with exactly two NULs.

RFC 4422 (SASL), RFC 4616 (PLAIN), RFC 5034 section 4 (the exchange in POP3).
"""

from __future__ import annotations

import binascii

CANCEL = b"*"  # RFC 5034 section 4: the client gives up
NO_OCTETS = b"="  # RFC 5034 section 4: an initial response that is there, and empty


class SaslError(ValueError):
    """A response that is none; `str()` says why in a client's words."""


def decode(line: bytes) -> bytes:
    """One response line without its CR LF, out of base64."""
    if line == CANCEL:
        raise SaslError("authentication cancelled")
    try:
        return binascii.a2b_base64(line, strict_mode=True)
    except binascii.Error:
        raise SaslError("the response is not base64") from None


def encode(message: bytes) -> bytes:
    """A message of ours as base64, for a line behind "+ "."""
    return binascii.b2a_base64(message, newline=False)


def decode_initial(text: bytes) -> bytes:
    """The initial response that stands in the AUTH command."""
    return b"" if text == NO_OCTETS else decode(text)


def plain(response: bytes) -> tuple[str, bytes]:
    """(user, password) of a PLAIN message: [authzid] NUL authcid NUL passwd.

    An authorization identity other than the user's own is refused.
    """
    parts = response.split(b"\0")
    if len(parts) != 3 or not parts[1] or not parts[2]:
        raise SaslError("this is no PLAIN message")
    try:
        authzid, user = parts[0].decode(), parts[1].decode()
    except UnicodeDecodeError:
        raise SaslError("the user name is not UTF-8") from None
    if not user.isprintable():
        raise SaslError("the user name has control characters")
    if authzid not in {"", user}:
        raise SaslError("one user cannot act for another")
    return user, parts[2]
