"""One line of an import: an account or an alias as described by a file, and its secret.

Rules of this file:

* Values that a file does not mention are not in `fields`, and stay unchanged in the database.
* A secret's text is never part of an error or a repr.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from metad import limits
from metad.errors import DataError
from metad.users import hashes, passwords, salted_hashes
from metad.users.passwords import ScramKeys


@dataclass(frozen=True, slots=True)
class Secret:
    """A password in its imported form: plain text, another program's hash, SCRAM keys, or none."""

    plain: bytes | None = field(default=None, repr=False)
    hash: str | None = field(default=None, repr=False)
    scram: ScramKeys | None = field(default=None, repr=False)

    @property
    def empty(self) -> bool:
        return self.plain is None and self.hash is None and self.scram is None


NO_SECRET = Secret()


class ImportEntry(NamedTuple):
    """`place` is file:line.  `members` None: an account.  `secret` None: the file has none.
    `no_login`: why its password cannot be used; the account is made nevertheless, so that no mail
    is refused because of an unusual hash."""

    place: str
    address: str
    secret: Secret | None = None
    fields: dict[str, Any] = {}  # noqa: RUF012 - never changed
    members: tuple[str, ...] | None = None
    no_login: str = ""


class BadLine(NamedTuple):
    """A line that was skipped, and why."""

    place: str
    reason: str


_SCHEME = re.compile(r"\{([A-Za-z0-9-]{1,32})(?:\.([A-Za-z0-9]+))?\}(.*)", re.ASCII | re.DOTALL)
_READABLE = {"PLAIN", "CLEAR", "CLEARTEXT"}
_HASHED = {
    "CRYPT", "BLF-CRYPT", "SHA512-CRYPT", "SHA256-CRYPT", "MD5-CRYPT", "MD5", "DES-CRYPT",
    "ARGON2I", "ARGON2ID",
}  # fmt: skip
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)


def hashed(text: str) -> Secret:
    """The password field of a shadow file: a hash; empty or locked: no password.  Raises
    DataError."""
    if not text or text.startswith(("!", "*")):
        return NO_SECRET
    hashes.scheme_of(text)
    return Secret(hash=text)


def dovecot(text: str, default: str = "CRYPT") -> Secret:
    """A password in Dovecot's form, "{SCHEME}...".  Raises DataError: an unknown scheme."""
    match = _SCHEME.fullmatch(text)
    scheme, encoding, value = match.groups() if match else (default, None, text)
    name = scheme.upper()
    if name in salted_hashes.SCHEMES or name == "PBKDF2":
        return Secret(hash=salted_hashes.normalised(name, encoding, value))
    if encoding:
        raise DataError(f"a password in the encoding {encoding!a} cannot be read here")
    if name in _READABLE:
        return readable(value)
    if name in _HASHED:
        return hashed(value)
    if name == "SCRAM-SHA-256":
        return scram(value)
    raise DataError(f"a password of the scheme {name} cannot be checked here")


def readable(text: str) -> Secret:
    """A password in plain text.  Raises DataError."""
    return Secret(plain=passwords.acceptable(text.encode("utf-8", "surrogateescape")))


def scram(text: str) -> Secret:
    """SCRAM keys as Dovecot writes them: iterations,salt,StoredKey,ServerKey in base64."""
    parts = text.removeprefix("{SCRAM-SHA-256}").split(",")
    if len(parts) == 4 and _NUMBER.fullmatch(parts[0]):
        try:
            octets = [base64.b64decode(one, validate=True) for one in parts[1:]]
        except (binascii.Error, ValueError):
            octets = []
        keys = passwords.unpacked([int(parts[0]), *octets])
        sizes = [len(one) for one in octets[1:]]
        if keys is not None and sizes == [32, 32] and 1 <= len(octets[0]) <= limits.PASSWORD:
            return Secret(scram=keys)
    raise DataError("not SCRAM-SHA-256 keys")


def show_scram(keys: ScramKeys) -> str:
    """The text that `scram` reads."""
    octets = (keys.salt, keys.stored_key, keys.server_key)
    return ",".join([str(keys.iterations), *(base64.b64encode(one).decode() for one in octets)])
