"""Addresses: valid ones, invalid ones, and their canonical spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.protocol.address import (
    DOMAIN_LIMIT,
    LOCAL_LIMIT,
    AddressError,
    Mailbox,
    fold,
    is_postmaster,
    parse_local,
    parse_mailbox,
    quote_local,
)


@pytest.mark.parametrize(
    ("text", "local", "domain"),
    [
        ("jo@example.org", "jo", "example.org"),
        ("Jo.Doe+tag@Example.ORG", "Jo.Doe+tag", "Example.ORG"),
        ("a!#$%&'*+/=?^_`{|}~-b@x", "a!#$%&'*+/=?^_`{|}~-b", "x"),
        ("jo@under_score.example.org", "jo", "under_score.example.org"),
        ('"jo doe"@example.org', "jo doe", "example.org"),
        ('"a@b"@example.org', "a@b", "example.org"),
        (r'"a\"\\b"@example.org', r'a"\b', "example.org"),
        ('""@example.org', "", "example.org"),
        ("jo@[192.0.2.1]", "jo", "[192.0.2.1]"),
        ("jo@[IPv6:2001:db8::1]", "jo", "[IPv6:2001:db8::1]"),
        ("jürgen@bücher.example", "jürgen", "bücher.example"),
        ("नम\u200dस@भारत.example", "नम\u200dस", "भारत.example"),
        ("a" * LOCAL_LIMIT + "@x", "a" * LOCAL_LIMIT, "x"),
        ("jo@" + "a" * 63 + ".x", "jo", "a" * 63 + ".x"),
    ],
)
def test_an_address_is_taken_apart(text: str, local: str, domain: str) -> None:
    assert parse_mailbox(text) == Mailbox(local, domain)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "jo",
        "@example.org",
        "jo@",
        "jo@@example.org",
        "a@b@c",
        ".jo@example.org",
        "jo.@example.org",
        "j..o@example.org",
        "j o@example.org",
        "jo@exa mple.org",
        "jo@example..org",
        "jo@.example.org",
        "jo@example.org.",
        "jo@-example.org",
        "jo@example-.org",
        "jo@exam!ple.org",
        "jo@[192.0.2.1",
        "jo@[]",
        "jo@[x y]",
        '"jo@example.org',
        '"jo"doe@example.org',
        '"j\no"@example.org',
        "jo\r\n@example.org",
        "jo@example.org\n",
        "jo@example.org\u2028x",
        "j\u2028o@example.org",
        "j\u00a0o@example.org",
        "j\u0085o@example.org",
        "j\x00o@example.org",
        "j\x7fo@example.org",
        "a" * (LOCAL_LIMIT + 1) + "@example.org",
        "ü" * (LOCAL_LIMIT // 2 + 1) + "@example.org",
        "jo@" + "a" * 64 + ".org",
        "jo@" + "a.b" * (DOMAIN_LIMIT // 3) + ".cc",
        "jo@\u00fc" + "ü" * 127,
    ],
)
def test_what_is_no_address_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_mailbox(text)
    assert str(caught.value)
    with pytest.raises(AddressError):
        fold(text)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(AddressError):
        parse_mailbox("j\ud800o@example.org")


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("jo@example.org", "jo@example.org"),
        ("Jo.Doe@Example.ORG", "jo.doe@example.org"),
        ('"Jo.Doe"@Example.ORG', "jo.doe@example.org"),
        (r'"J\o"@example.org', "jo@example.org"),
        ('"Jo Doe"@example.org', '"jo doe"@example.org'),
        (r'"a\"b"@example.org', r'"a\"b"@example.org'),
        ("JO@[IPv6:2001:DB8::1]", "jo@[ipv6:2001:db8::1]"),
        ("Ju\u0308rgen@BÜCHER.example", "jürgen@xn--bcher-kva.example"),
        ("A" * LOCAL_LIMIT + "@x", "a" * LOCAL_LIMIT + "@x"),
    ],
)
def test_an_address_folds_to_its_one_spelling(text: str, folded: str) -> None:
    assert fold(text) == folded


def test_folding_never_exceeds_the_limits() -> None:
    with pytest.raises(AddressError, match="too long"):
        fold("\u0130" * (LOCAL_LIMIT // 2) + "@x")  # three octets each, folded


@pytest.mark.slow
@given(st.text(max_size=20), st.text(max_size=20))
def test_folding_what_was_folded_changes_nothing(local: str, domain: str) -> None:
    try:
        folded = fold(f"{local}@{domain}")
    except AddressError:
        return
    assert fold(folded) == folded
    assert not any(character < " " for character in folded)


@pytest.mark.slow
@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=20))
def test_any_printable_local_part_can_be_written_and_read_again(local: str) -> None:
    assert parse_mailbox(f"{quote_local(local)}@example.org") == Mailbox(local, "example.org")


def test_a_local_part_stands_alone() -> None:
    assert parse_local('"a b"') == "a b"
    with pytest.raises(AddressError, match="bad local part"):
        parse_local("a b")
    with pytest.raises(AddressError, match="too long"):
        parse_local("a" * (LOCAL_LIMIT + 1))


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("postmaster@mx.example.org", True),
        ("PostMaster@MX.Example.org", True),
        ("postmaster@[192.0.2.1]", True),
        ("postmaster@example.org", False),
        ("root@mx.example.org", False),
        ("postmaster@x@mx.example.org", False),
        ("postmaster", False),
    ],
)
def test_the_postmaster_of_the_host_itself(address: str, own: bool) -> None:
    assert is_postmaster(address, "mx.example.org") is own
