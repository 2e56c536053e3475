"""SCRAM-SHA-256, the server's side of one exchange (RFC 5802, RFC 7677).

Rules of this file:

* Pure: the keys and the random nonce are arguments; there is no other input.
* Everything is compared as received, octet by octet; a proof in constant time.
* Without channel binding: Python's ssl offers none that a client could use (RFC 5802 section 6: "n"
  and "y" are accepted, "p=" is not).

    client-first -> server-first -> client-final -> server-final
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from typing import Final, Protocol

from metad.protocol.sasl import NAME_LIMIT, SaslError

_HASH: Final = "sha256"
# RFC 5802 section 7; the channel binding flag, the authorization identity, then the bare message
# with the user's name and the nonce; extensions may follow, and a mandatory one ("m=") is refused
# because we know none.
_FIRST: Final = re.compile(
    rb"((?:n|y|p=[A-Za-z0-9.-]+),(?:a=([^,\0]+))?,)(n=([^,\0]+),r=([!-+\x2d-~]+)(?:,[^\0]*)?)"
)
_FINAL: Final = re.compile(
    rb"(c=([A-Za-z0-9+/=]+),r=([!-+\x2d-~]+)(?:,[A-Za-z]=[^,\0]+)*),p=([A-Za-z0-9+/=]+)"
)
_NAME: Final = re.compile(r"(?:[^=]|=2C|=3D)+")


class Keys(Protocol):
    """What the server knows about a password (RFC 5802 section 3)."""

    @property
    def iterations(self) -> int: ...
    @property
    def salt(self) -> bytes: ...
    @property
    def stored_key(self) -> bytes: ...
    @property
    def server_key(self) -> bytes: ...


class Exchange:
    """One exchange.  Its first message names `user`, whose password it is, and `mailbox`, the user
    to act as (RFC 5802 section 5.1, "a").  Raises SaslError."""

    __slots__ = (
        "_bare",
        "_header",
        "_keys",
        "_nonce",
        "_server_first",
        "mailbox",
        "server_final",
        "user",
    )
    _keys: Keys
    _server_first: bytes
    server_final: bytes  # once the proof was checked

    def __init__(self, client_first: bytes) -> None:
        match = _FIRST.fullmatch(client_first)
        if match is None:
            raise SaslError("not a SCRAM message")
        self._header, authzid, self._bare, name, self._nonce = match.groups()
        if self._header.startswith(b"p"):
            raise SaslError("channel binding is not supported")
        self.user = _name(name)
        self.mailbox = self.user if authzid is None else _name(authzid)

    def server_first(self, keys: Keys, nonce: bytes) -> bytes:
        """The challenge; `nonce`: printable, without commas, and never used before."""
        self._keys = keys
        self._nonce += nonce
        salt = binascii.b2a_base64(keys.salt, newline=False)
        self._server_first = b"r=%b,s=%b,i=%d" % (self._nonce, salt, keys.iterations)
        return self._server_first

    def is_proven(self, client_final: bytes) -> bool:
        """Whether the client knows the password.  Sets `server_final`, worth sending if so."""
        match = _FINAL.fullmatch(client_final)
        if match is None:
            raise SaslError("not a SCRAM message")
        without_proof, binding, nonce, proof = match.groups()
        if _decoded(binding) != self._header or nonce != self._nonce:
            raise SaslError("the response answers another challenge")
        exchanged = b",".join((self._bare, self._server_first, without_proof))
        signature = hmac.digest(self._keys.stored_key, exchanged, _HASH)
        verifier = hmac.digest(self._keys.server_key, exchanged, _HASH)
        self.server_final = b"v=" + binascii.b2a_base64(verifier, newline=False)
        client_key = _xor(_decoded(proof), signature)
        return hmac.compare_digest(hashlib.sha256(client_key).digest(), self._keys.stored_key)


def _name(octets: bytes) -> str:
    """A saslname: UTF-8 with "," and "=" written as =2C and =3D."""
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        raise SaslError("the user name is not UTF-8") from None
    if len(text) > NAME_LIMIT or not _NAME.fullmatch(text) or not text.isprintable():
        raise SaslError("not a user name")
    return text.replace("=2C", ",").replace("=3D", "=")


def _decoded(text: bytes) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise SaslError("not base64") from None


def _xor(one: bytes, other: bytes) -> bytes:
    """XOR, octet by octet; if the lengths differ, a value that proves nothing."""
    if len(one) != len(other):
        return b""
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
