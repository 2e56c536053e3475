"""Password keys: the RFC's own example, what is accepted, and SASLprep."""

import base64
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metad import limits
from metad.errors import DataError
from metad.users import passwords


def test_the_keys_are_those_of_the_example_of_rfc_7677():
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    keys = passwords.derive(b"pencil", salt, 4096)
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    message = (
        f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}"
    ).encode()
    signature = hmac.digest(keys.server_key, message, "sha256")
    assert base64.b64encode(signature) == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    client_signature = hmac.digest(keys.stored_key, message, "sha256")
    client_key = bytes(a ^ b for a, b in zip(proof, client_signature, strict=True))
    assert passwords.hashlib.sha256(client_key).digest() == keys.stored_key  # type: ignore[attr-defined]


def test_only_the_right_password_fits():
    keys = passwords.make(b"right", 10)
    assert passwords.check(b"right", keys)
    assert not passwords.check(b"Right", keys)
    assert not passwords.check(b"", keys)


def test_equal_passwords_have_different_salts():
    one, other = passwords.make(b"same", 10), passwords.make(b"same", 10)
    assert one.salt != other.salt
    assert one.stored_key != other.stored_key


def test_a_password_above_the_limit_never_fits():
    long = b"x" * (limits.PASSWORD + 1)
    assert not passwords.check(long, passwords.make(long[:-1], 10))


def test_packed_keys_are_unpacked_the_same():
    keys = passwords.make(b"x", 10)
    assert passwords.unpacked(keys.packed()) == keys


@pytest.mark.parametrize(
    "value",
    [None, [], "x", [10, b"s", b"k"], ["10", b"s", b"k", b"v"], [True, b"s", b"k", b"v"],
     [0, b"s", b"k", b"v"], [10**9, b"s", b"k", b"v"], [10, "s", b"k", b"v"]],
)  # fmt: skip
def test_keys_that_cannot_be_checked_are_none(value):
    assert passwords.unpacked(value) is None


def test_fake_keys_are_stable_for_an_address_and_differ_between_addresses_and_secrets():
    assert passwords.fake(b"s", b"a@b") == passwords.fake(b"s", b"a@b")
    assert passwords.fake(b"s", b"a@b").salt != passwords.fake(b"s", b"a@c").salt
    assert passwords.fake(b"s", b"a@b").salt != passwords.fake(b"t", b"a@b").salt
    assert len(passwords.fake(b"s", b"a@b").salt) == passwords.SALT_OCTETS


def test_no_key_is_in_the_repr():
    assert repr(passwords.make(b"x", 10)) == "ScramKeys(iterations=10)"


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        (b"", "empty"),
        (b"x" * (limits.PASSWORD + 1), "longer than"),
        (b"a\0b", "control"),
        (b"a\r", "control"),
        (b"a\n", "control"),
        (b"\x7f", "control"),
    ],
)
def test_a_password_that_no_client_could_send_is_refused(password, reason):
    with pytest.raises(DataError, match=reason):
        passwords.acceptable(password)


def test_a_password_of_the_largest_size_is_accepted():
    assert passwords.acceptable(b"x" * limits.PASSWORD) == b"x" * limits.PASSWORD


@pytest.mark.parametrize(
    ("given_text", "prepared"),
    [  # RFC 4013 section 3, and what is left as it is
        ("I\u00adX", "IX"),
        ("user", "user"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("p\u00e5ss", "p\u00e5ss"),
        ("pa\u030ass", "p\u00e5ss"),
        ("\u0627\u0031", "\u0627\u0031"),
        ("\u00ad", "\u00ad"),
        ("\u0627\u0628", "\u0627\u0628"),
        ("\u0627a\u0628", "\u0627a\u0628"),
    ],
)
def test_saslprep_is_applied_where_it_allows(given_text, prepared):
    assert passwords.prepare(given_text.encode()) == prepared.encode()


def test_a_password_that_normalisation_makes_long_cost_twenty_times_as_much(monkeypatch):
    """Regression: 333 characters become 5,994, each of which was looked up in nine tables at every
    login."""
    looked_up = []
    monkeypatch.setattr(
        passwords, "_PROHIBITED", (lambda character: looked_up.append(character) or False,)
    )
    expanding = ("\ufdfa" * 333).encode()
    assert passwords.prepare(expanding) == expanding
    assert looked_up == []
    repeated = ("\xfc" * 512).encode()
    assert passwords.prepare(repeated) == repeated
    assert len(looked_up) == 1


def test_a_password_that_is_not_utf8_is_taken_as_it_is():
    assert passwords.prepare(b"p\xe5ss") == b"p\xe5ss"
    assert passwords.check(b"p\xe5ss", passwords.make(b"p\xe5ss", 10))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=100))
def test_any_password_fits_its_own_keys(password):
    assert passwords.check(password, passwords.make(password, 1))
