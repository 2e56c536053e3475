"""SASL: the client's responses.

Rules of this file:

* Pure functions over octets; passwords are checked elsewhere.
* Strict: no foreign octets or missing padding in base64, exactly two NULs in PLAIN.

RFC 4422 (SASL), RFC 4616 (PLAIN), RFC 5034 section 4 (the exchange in POP3).
"""

from __future__ import annotations

import binascii

CANCEL = b"*"  # RFC 5034 section 4: the client gives up
# Maximum characters in a user name: no address has as many.
NAME_LIMIT = 512
NO_OCTETS = b"="  # RFC 5034 section 4: an initial response that is present and empty


class SaslError(ValueError):
    """A bad response; `str()` is the reason, for the client."""


def decode(line: bytes) -> bytes:
    """One response line without its CR LF, decoded from base64."""
    if line == CANCEL:
        raise SaslError("authentication cancelled")
    try:
        return binascii.a2b_base64(line, strict_mode=True)
    except binascii.Error:
        raise SaslError("the response is not base64") from None


def encode(message: bytes) -> bytes:
    """A message of ours in base64, for a line after "+ "."""
    return binascii.b2a_base64(message, newline=False)


def decode_initial(text: bytes) -> bytes:
    """The initial response in the AUTH command."""
    return b"" if text == NO_OCTETS else decode(text)


def plain(response: bytes) -> tuple[str, str, bytes]:
    """The user to act as, the user whose password it is, and the password, from a PLAIN message:
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
