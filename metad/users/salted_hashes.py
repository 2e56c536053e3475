"""Dovecot's password hashes made of a digest and a salt, and its PBKDF2; checked with hashlib.

    {SSHA256}BASE64(digest + salt)          {SHA1}BASE64(digest)
    {PBKDF2}$1$SALT$ROUNDS$HEX              HMAC-SHA1, 20 bytes

Rule of this file: only checked, never made.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import NamedTuple

from metad import limits
from metad.errors import DataError


class Scheme(NamedTuple):
    """A digest from hashlib, and whether a salt follows it."""

    digest: str
    salted: bool


SCHEMES = {
    "SHA": Scheme("sha1", False),
    "SHA1": Scheme("sha1", False),
    "SHA256": Scheme("sha256", False),
    "SHA512": Scheme("sha512", False),
    "SSHA": Scheme("sha1", True),
    "SSHA256": Scheme("sha256", True),
    "SSHA512": Scheme("sha512", True),
    "LDAP-MD5": Scheme("md5", False),
    "PLAIN-MD5": Scheme("md5", False),
    "SMD5": Scheme("md5", True),
}
_TEXT = re.compile(r"\{([A-Z0-9-]{1,16})\}([!-~]{1,1024})", re.ASCII)
_PBKDF2 = re.compile(
    r"\$1\$(?P<salt>[!-#%-~]{1,64})\$(?P<rounds>[0-9]{1,9})\$(?P<hash>[0-9a-f]{40})"
)
_MOST_SALT = 128


def normalised(name: str, encoding: str | None, value: str) -> str:
    """The canonical form of a hash: {SCHEME}BASE64.  Raises DataError."""
    if name == "PBKDF2":
        text = f"{{PBKDF2}}{value}"
    else:
        hexadecimal = (encoding or "").upper() == "HEX" or (name == "PLAIN-MD5" and not encoding)
        try:
            raw = bytes.fromhex(value) if hexadecimal else base64.b64decode(value, validate=True)
        except (ValueError, binascii.Error):
            raise DataError(f"a password hash that is not {name}") from None
        text = f"{{{name}}}{base64.b64encode(raw).decode()}"
    scheme_of(text)
    return text


def scheme_of(source: str) -> str:
    """The scheme in lower case.  Raises DataError: unknown, malformed, or too costly."""
    match = _TEXT.fullmatch(source)
    name, value = match.groups() if match else ("", "")
    if name == "PBKDF2":
        found = _PBKDF2.fullmatch(value)
        if found and 1 <= int(found["rounds"]) <= limits.MAX_SCRAM_ITERATIONS:
            return "pbkdf2"
        raise DataError("a PBKDF2 hash that is malformed or costs too much")
    scheme = SCHEMES.get(name)
    if scheme is None or not _fits(scheme, _raw(value)):
        raise DataError("a password hash of an unknown kind")
    return name.lower()


def check(password: bytes, source: str) -> bool:
    """Whether it is the password of a hash that `scheme_of` accepted."""
    name, _, value = source[1:].partition("}")
    if name == "PBKDF2":
        _, _, salt, rounds, wanted = value.split("$")
        made = hashlib.pbkdf2_hmac("sha1", password, salt.encode(), int(rounds), 20)
        return hmac.compare_digest(made.hex(), wanted)
    digest, _ = SCHEMES[name]
    raw = _raw(value)
    size = hashlib.new(digest, usedforsecurity=False).digest_size
    made = hashlib.new(digest, password + raw[size:], usedforsecurity=False).digest()
    return hmac.compare_digest(made, raw[:size])


def work_of(source: str) -> str:
    """The parameters that determine how long a check takes.  Raises DataError."""
    scheme_of(source)
    name, _, value = source[1:].partition("}")
    return f"{{PBKDF2}}{value.split('$')[3]}" if name == "PBKDF2" else f"{{{name}}}"


def imitate(password: bytes, work: str) -> None:
    """Spend the time that a check with this `work` takes."""
    name, _, rounds = work[1:].partition("}")
    if name == "PBKDF2":
        hashlib.pbkdf2_hmac("sha1", password, b"", int(rounds), 20)
    else:
        hashlib.new(SCHEMES[name].digest, password, usedforsecurity=False)


def _fits(scheme: Scheme, raw: bytes) -> bool:
    salt = len(raw) - hashlib.new(scheme.digest, usedforsecurity=False).digest_size
    return 1 <= salt <= _MOST_SALT if scheme.salted else salt == 0


def _raw(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        return b""
