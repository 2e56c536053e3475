"""Dovecot's salted digests and PBKDF2, made here as `doveadm pw` makes them."""

from __future__ import annotations

import base64
import hashlib

import pytest

from metad.errors import DataError
from metad.users import hashes
from metad.users.imports import import_entries
from metad.users.salted_hashes import SCHEMES, normalised

PASSWORD = "sécret".encode()


def made(name: str, salt: bytes = b"\x00\xffsalt") -> bytes:
    scheme = SCHEMES[name]
    salt = salt if scheme.salted else b""
    return hashlib.new(scheme.digest, PASSWORD + salt).digest() + salt


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("encoding", ["b64", "hex"])
def test_the_right_password_is_right_and_another_is_not(name: str, encoding: str) -> None:
    raw = made(name)
    value = base64.b64encode(raw).decode() if encoding == "b64" else raw.hex()
    secret = import_entries.dovecot(f"{{{name}.{encoding}}}{value}")
    assert secret.hash is not None
    assert hashes.scheme_of(secret.hash) == name.lower()
    assert hashes.check(PASSWORD, secret.hash)
    assert not hashes.check(b"other", secret.hash)
    assert hashes.is_weak(secret.hash)


def test_known_hashes_of_others() -> None:
    # RFC 2307's example of {SHA}, and a PBKDF2-HMAC-SHA1 vector of RFC 6070.
    secret = import_entries.dovecot("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=")
    assert secret.hash is not None
    assert hashes.check(b"secret", secret.hash)
    text = "{PBKDF2}$1$salt$4096$4b007901b765489abead49d926f721d065a429c1"
    assert hashes.scheme_of(text) == "pbkdf2"
    assert hashes.check(b"password", text)
    assert not hashes.check(b"Password", text)
    assert not hashes.is_weak(text)


@pytest.mark.parametrize(
    "text",
    [
        "{SSHA}", "{SSHA}!!!!", "{SSHA256}" + base64.b64encode(b"x" * 32).decode(),
        "{SHA256}" + base64.b64encode(b"x" * 33).decode(), "{XSHA}YWFh", "{PBKDF2}$1$$1$00",
        "{PBKDF2}$1$salt$0$" + "0" * 40, "{PBKDF2}$1$salt$2000000$" + "0" * 40, "{}x", "{",
    ],
)  # fmt: skip
def test_what_is_no_such_hash_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        hashes.scheme_of(text)


def test_a_hash_in_a_wrong_encoding_is_refused() -> None:
    with pytest.raises(DataError):
        normalised("SSHA", None, "not base64!")
    with pytest.raises(DataError):
        normalised("SSHA", "HEX", "zz")
