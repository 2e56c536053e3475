"""Effects of a configuration that its author probably does not want."""

from __future__ import annotations

from pathlib import Path

import pytest

from metad.config.advice import advice
from metad.config.parse import parse


def given(listen: str, rest: str = "") -> list[str]:
    return list(advice(parse(f"[[listen]]\n{listen}\n{rest}", None, Path("/srv/m"), {})))


POP3 = 'protocol = "pop3"\naddress = "%s"\n'


@pytest.mark.parametrize(
    "address", ["0.0.0.0:110", "[2001:db8::1]:110", "192.0.2.1:110", "fd:pop3"]
)
def test_pop3_on_a_public_address_without_tls_would_serve_hardly_any_client(address: str) -> None:
    (line,) = given(POP3 % address)
    assert "only SCRAM" in line
    assert address in line


@pytest.mark.parametrize(
    ("rest", "text"),
    [
        ('[pop3]\nplaintext = "always"', "clear text"),
        ('[pop3]\nscram = "never"', "no client can log in"),
    ],
)
def test_the_other_ways_to_get_pop3_wrong(rest: str, text: str) -> None:
    (line,) = given(POP3 % "0.0.0.0:110", rest)
    assert text in line


@pytest.mark.parametrize(
    "listen",
    [
        POP3 % "127.0.0.1:110",
        POP3 % "[::1]:110",
        POP3 % "unix:/run/x",
        POP3 % "0.0.0.0:995" + 'tls = "implicit"',
        'protocol = "smtp"\naddress = "0.0.0.0:25"',
    ],
)
def test_what_is_fine_gets_no_advice(listen: str) -> None:
    assert given(listen) == []


def test_settings_that_lose_or_change_mail_are_named() -> None:
    lines = given(POP3 % "127.0.0.1:1", '[store]\nsync = false\n[smtp]\nbare_line_ends = "repair"')
    assert [line.split(" ")[0] for line in lines] == ["store.sync", "smtp.bare_line_ends"]


SMTP = 'protocol = "smtp"\naddress = "%s"\n'


def test_all_addresses_of_ipv6_are_not_those_of_ipv4() -> None:
    (line,) = given(SMTP % "[::]:25")
    assert line == (
        'listen [::]:25: serves IPv6 only; for IPv4 add a [[listen]] with address = "0.0.0.0:25"'
    )
    assert given(SMTP % "[::]:25" + "[[listen]]\n" + SMTP % "0.0.0.0:25") == []
    assert len(given(SMTP % "[::]:25" + "[[listen]]\n" + SMTP % "0.0.0.0:26")) == 1
    assert given(SMTP % "[2001:db8::1]:25") == []
