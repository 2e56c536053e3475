"""SCRAM-SHA-256: the RFC's own exchange, and every message that is not one."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.protocol.sasl import SaslError
from metad.protocol.scram import Exchange
from metad.users.passwords import derive, fake

# RFC 7677 section 3.
FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
NONCE = b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
KEYS = derive(b"pencil", base64.b64decode(b"W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
CHALLENGE = (
    b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
)
FINAL = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
    b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
VERIFIER = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def begun(first: bytes = FIRST) -> Exchange:
    exchange = Exchange(first)
    exchange.server_first(KEYS, NONCE)
    return exchange


def test_the_exchange_of_the_rfc() -> None:
    exchange = Exchange(FIRST)
    assert exchange.user == "user"
    assert exchange.server_first(KEYS, NONCE) == CHALLENGE
    assert exchange.is_proven(FINAL)
    assert exchange.server_final == VERIFIER


def test_keys_of_another_password_or_of_no_user_prove_nothing() -> None:
    for keys in (derive(b"crayon", KEYS.salt, 4096), fake(b"secret", b"user")):
        exchange = Exchange(FIRST)
        exchange.server_first(keys, NONCE)
        assert not exchange.is_proven(FINAL)


@pytest.mark.parametrize(
    "proof", [b"AAAA", base64.b64encode(bytes(32)), base64.b64encode(b"x" * 64)]
)
def test_a_wrong_proof_proves_nothing(proof: bytes) -> None:
    assert not begun().is_proven(FINAL[: FINAL.index(b"p=") + 2] + proof)


def test_an_exchange_cannot_be_replayed_against_another_challenge() -> None:
    exchange = Exchange(FIRST)
    exchange.server_first(KEYS, b"another")
    with pytest.raises(SaslError):
        exchange.is_proven(FINAL)


@pytest.mark.parametrize(
    ("first", "user"),
    [
        (b"y,,n=user,r=abc", "user"),
        (b"n,a=user,n=user,r=abc", "user"),
        (b"n,,n=bob@example.org,r=abc", "bob@example.org"),
        (b"n,,n=a=2Cb=3Dc,r=abc", "a,b=c"),
        (b"n,,n=a=3D2Cb,r=abc", "a=2Cb"),
        (b"n,,n=user,r=abc,x=extension", "user"),
        ("n,,n=räk,r=abc".encode(), "räk"),
    ],
)
def test_user_names(first: bytes, user: str) -> None:
    assert Exchange(first).user == user
    assert Exchange(first).mailbox == user


def test_the_mailbox_of_another_user() -> None:
    exchange = Exchange(b"n,a=other=2Cone,n=user,r=abc")
    assert (exchange.user, exchange.mailbox) == ("user", "other,one")


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"n",
        b"n,,",
        b"n,,n=,r=abc",
        b"n,,n=user,r=",
        b"n,,n=user",
        b"n,,r=abc,n=user",
        b"n,,m=x,n=user,r=abc",
        b"x,,n=user,r=abc",
        b"p=tls-unique,,n=user,r=abc",
        b"n,a=ot=her,n=user,r=abc",
        b"n,,n=" + b"u" * 513 + b",r=abc",
        b"n,,n=us=er,r=abc",
        b"n,,n=us=2cer,r=abc",
        b"n,,n=us\0er,r=abc",
        b"n,,n=us\ner,r=abc",
        b"n,,n=\xff,r=abc",
        b"n,,n=user,r=a b",
        b"n,,n=user,r=a\x80",
        b"n,,n=user,r=abc\n",
    ],
)
def test_what_is_no_first_message_is_refused(first: bytes) -> None:
    with pytest.raises(SaslError):
        Exchange(first)


@pytest.mark.parametrize(
    "final",
    [
        b"",
        b"c=biws",
        FINAL[:-1] + b"!",
        FINAL[:-2],
        FINAL.replace(b"biws", b"eSws"),
        FINAL.replace(b"biws", b"===="),
        FINAL.replace(b"r=r", b"r=x"),
        FINAL.replace(b",p=", b",P="),
        FINAL + b",x=y",
        b"x" + FINAL,
    ],
)
def test_what_is_no_final_message_is_refused(final: bytes) -> None:
    with pytest.raises(SaslError):
        begun().is_proven(final)


@pytest.mark.slow
@given(st.binary(max_size=80), st.binary(max_size=120))
def test_no_bytes_raise_anything_else_or_prove_anything(first: bytes, final: bytes) -> None:
    for message in (first, b"n,,n=" + first, FIRST + first):
        try:
            Exchange(message)
        except SaslError:
            pass
    for message in (final, FINAL[: len(final)] + final, FINAL + final):
        try:
            proven = begun().is_proven(message)
        except SaslError:
            continue
        assert not proven or message == FINAL
