"""SASL: the client's responses.

Rules of this file:

* Pure functions over octets; passwords are checked elsewhere.
* Strict: base64 without foreign octets or missing padding, PLAIN with exactly two NULs.

RFC 4422 (SASL), RFC 4616 (PLAIN), RFC 5034 section 4 (the exchange in POP3).
"""

from __future__ import annotations

import binascii

CANCEL = b"*"  # RFC 5034 section 4: the client gives up
# Characters of a user name: no address has as many.
NAME_LIMIT = 512
NO_OCTETS = b"="  # RFC 5034 section 4: an initial response that is there, and empty


class SaslError(ValueError):
    """A bad response; `str()` is the reason, for the client."""


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


def plain(response: bytes) -> tuple[str, str, bytes]:
    """(user to act as, user whose password it is, password) of a PLAIN message:
    [authzid] NUL authcid NUL passwd."""
    parts = response.split(b"\0")
    if len(parts) != 3 or not parts[1] or not parts[2]:
        raise SaslError("not a PLAIN message")
    try:
        authzid, user = parts[0].decode(), parts[1].decode()
    except UnicodeDecodeError:
        raise SaslError("the user name is not UTF-8") from None
    if not (user.isprintable() and authzid.isprintable()):
        raise SaslError("the user name has control characters")
    if max(len(user), len(authzid)) > NAME_LIMIT:
        raise SaslError("not a user name")
    return authzid or user, user, parts[2]
