"""Password keys: make, store and check them.

Rules of this file:

* We make SCRAM-SHA-256 keys (RFC 5802, RFC 7677): a password can be checked against them, but
  stolen keys do not permit a login.  Hashes of other programs: hashes.py.
* A check costs the same whether or not the user exists: `fake` keys replace missing ones
  (login_kinds.py chooses the kind), and are always the same for a name.
* No password is ever part of an error, a repr or a log line.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import stringprep
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from metad import limits
from metad.errors import DataError

SALT_OCTETS = 16
_HASH = "sha256"
_KEY_OCTETS = 32
# RFC 4013 section 2.3: what a password may not contain.
_PROHIBITED = (
    stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3,
    stringprep.in_table_c4, stringprep.in_table_c5, stringprep.in_table_c6,
    stringprep.in_table_c7, stringprep.in_table_c8, stringprep.in_table_c9,
)  # fmt: skip
_GOOD = f"one of 1 to {limits.PASSWORD:,} bytes without control characters"


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """The values that a server stores according to RFC 5802 section 3."""

    iterations: int
    salt: bytes = field(repr=False)
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    def packed(self) -> list[Any]:
        return [self.iterations, self.salt, self.stored_key, self.server_key]


def unpacked(value: object) -> ScramKeys | None:
    """The keys from the result of `packed`; None if `value` cannot be checked."""
    if not isinstance(value, list) or len(value) < 4:
        return None
    iterations, salt, stored, server = value[:4]
    octets = all(isinstance(one, bytes) for one in (salt, stored, server))
    if not octets or not isinstance(iterations, int) or isinstance(iterations, bool):
        return None
    if not 1 <= iterations <= limits.MAX_SCRAM_ITERATIONS:
        return None
    return ScramKeys(iterations, salt, stored, server)


def make(password: bytes, iterations: int = limits.SCRAM_ITERATIONS) -> ScramKeys:
    """New keys with a new salt; blocks for the hashing, about a millisecond."""
    return derive(password, secrets.token_bytes(SALT_OCTETS), iterations)


def derive(password: bytes, salt: bytes, iterations: int) -> ScramKeys:
    """The keys of a password: RFC 5802 section 3, SaltedPassword to ServerKey."""
    salted = hashlib.pbkdf2_hmac(_HASH, prepare(password), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", _HASH)
    stored_key = hashlib.new(_HASH, client_key).digest()
    return ScramKeys(iterations, salt, stored_key, hmac.digest(salted, b"Server Key", _HASH))


def check(password: bytes, keys: ScramKeys) -> bool:
    """Whether `password` belongs to `keys`; blocks for the hashing."""
    derived = derive(password[: limits.PASSWORD], keys.salt, keys.iterations)
    same = hmac.compare_digest(derived.stored_key, keys.stored_key)
    return same and len(password) <= limits.PASSWORD


def fake(
    secret: bytes,
    name: bytes,
    iterations: int = limits.SCRAM_ITERATIONS,
    salt_octets: int = SALT_OCTETS,
) -> ScramKeys:
    """Keys that match no password; always the same for a `name` and a `secret`."""
    salt = hashlib.shake_256(hmac.digest(secret, b"salt " + name, _HASH)).digest(salt_octets)
    stored, server = (hmac.digest(secret, kind + name, _HASH) for kind in (b"stored ", b"server "))
    return ScramKeys(iterations, salt, stored[:_KEY_OCTETS], server[:_KEY_OCTETS])


def acceptable(password: bytes) -> bytes:
    """`password`, if a POP3 client can send it.  Raises DataError with the reason."""
    if not password:
        raise DataError("the password is empty", remedy=f"give {_GOOD}")
    if len(password) > limits.PASSWORD:
        raise DataError(
            f"the password is longer than {limits.PASSWORD:,} bytes", remedy=f"give {_GOOD}"
        )
    if any(octet < 0x20 or octet == 0x7F for octet in password):
        raise DataError("the password has control characters", remedy=f"give {_GOOD}")
    return password


def prepare(password: bytes) -> bytes:
    """SASLprep (RFC 4013), as RFC 5802 requires, if it applies; otherwise the bytes unchanged.

    A client that sends its password in plain may send any bytes.  Those that are not UTF-8, or that
    SASLprep forbids, still make keys that a PLAIN login or PASS matches.  So do those that NFKC
    makes longer than a password may be: one character can become 18, and each is checked.
    """
    if password.isascii():
        return password
    try:
        text = password.decode("utf-8")
    except UnicodeDecodeError:
        return password
    mapped = "".join(_mapped(char) for char in text)
    # RFC 3454 uses Unicode 3.2; normalising by that table keeps keys the same over the years.
    normal = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if not normal or len(normal) > limits.PASSWORD or _forbidden(normal):
        return password
    return normal.encode("utf-8")


def _mapped(char: str) -> str:
    """RFC 4013 section 2.1: blanks become a space, and characters "commonly mapped to nothing" are
    removed."""
    if stringprep.in_table_c12(char):
        return " "
    return "" if stringprep.in_table_b1(char) else char


def _forbidden(text: str) -> bool:
    if any(within(char) for char in set(text) for within in _PROHIBITED):
        return True
    # RFC 3454 section 6: right-to-left text begins and ends with such characters, and has no
    # left-to-right ones.
    if not any(map(stringprep.in_table_d1, text)):
        return False
    ends = stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
    return not ends or any(map(stringprep.in_table_d2, text))
