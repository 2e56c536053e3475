"""Trace headers: exact octets, and no client input that could break them."""

from __future__ import annotations

import email
import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.protocol.trace import (
    IN_FRONT_SIZE,
    date,
    delivered_to,
    in_front,
    origin,
    received,
    return_path,
)

DATE = b"Thu, 1 Jan 2026 00:00:00 +0000"
ORIGIN = origin(b"c.example", "192.0.2.1", "mx.example.org", "ESMTP")


def test_received_names_the_one_recipient() -> None:
    assert received(ORIGIN, "0a1b", DATE, "jo@example.org") == (
        b"Received: from c.example ([192.0.2.1])\r\n"
        b"\tby mx.example.org with ESMTP id 0a1b\r\n"
        b"\tfor <jo@example.org>;\r\n"
        b"\tThu, 1 Jan 2026 00:00:00 +0000\r\n"
    )


def test_received_names_none_of_several_recipients() -> None:
    assert received(ORIGIN, "0a1b", DATE, None) == (
        b"Received: from c.example ([192.0.2.1])\r\n"
        b"\tby mx.example.org with ESMTP id 0a1b;\r\n"
        b"\tThu, 1 Jan 2026 00:00:00 +0000\r\n"
    )


@pytest.mark.parametrize(
    ("helo", "address", "expected"),
    [
        (b"c.example", "2001:db8::1", b"from c.example ([IPv6:2001:db8::1])"),
        (b"c.example", "fe80::1%eth0", b"from c.example ([IPv6:fe80::1])"),
        (b"under_score.example", "192.0.2.1", b"from under_score.example ([192.0.2.1])"),
        (b"localhost", "192.0.2.1", b"from localhost ([192.0.2.1])"),
        (b"c.example.", "192.0.2.1", b"from c.example. ([192.0.2.1])"),
        (b"[192.0.2.9]", "192.0.2.1", b"from [192.0.2.9] ([192.0.2.1])"),
        (b"[IPv6:::1]", "192.0.2.1", b"from [IPv6:::1] ([192.0.2.1])"),
        (b"c.example", "", b"from c.example"),
        (b"not a name", "", b"from localhost"),
        (b"not a name", "192.0.2.1", b"from [192.0.2.1] ([192.0.2.1])"),
        (b"c (by evil)", "192.0.2.1", b"from [192.0.2.1] ([192.0.2.1])"),
        (b"c\r\nX: y", "192.0.2.1", b"from [192.0.2.1] ([192.0.2.1])"),
        (b"c.example\n", "192.0.2.1", b"from [192.0.2.1] ([192.0.2.1])"),
        (b"-c.example", "192.0.2.1", b"from [192.0.2.1] ([192.0.2.1])"),
        (b"", "192.0.2.1", b"from [192.0.2.1] ([192.0.2.1])"),
        (b"\xc3\xbc.example", "192.0.2.1", b"from [192.0.2.1] ([192.0.2.1])"),
        (b"a." * 127 + b"aa", "192.0.2.1", b"from [192.0.2.1] ([192.0.2.1])"),
        (b"[1.2.3.4", "::1", b"from [IPv6:::1] ([IPv6:::1])"),
    ],
)
def test_a_helo_that_is_no_name_is_replaced(helo: bytes, address: str, expected: bytes) -> None:
    beginning = origin(helo, address, "mx", "SMTP")
    assert beginning == b"Received: " + expected + b"\r\n\tby mx with SMTP id "


@pytest.mark.slow
@given(st.binary(max_size=40), st.sampled_from(["", "192.0.2.1", "::1"]))
def test_no_helo_breaks_the_header(helo: bytes, address: str) -> None:
    header = received(origin(helo, address, "mx", "ESMTP"), "id", DATE, None)
    assert header.count(b"\r\n") == header.count(b"\r") == header.count(b"\n") == 3
    assert header.isascii()
    assert list(email.message_from_bytes(header + b"\r\n").keys()) == ["Received"]


@pytest.mark.slow
@given(st.text(max_size=40))
def test_no_address_breaks_a_header(address: str) -> None:
    for header in (
        return_path(address),
        delivered_to(address),
        received(ORIGIN, "id", DATE, address),
    ):
        assert header.endswith(b"\r\n")
        assert header.count(b"\r") == header.count(b"\n") == header.count(b"\r\n")
        assert b"\0" not in header
    assert return_path(address).count(b"\r\n") == 1


def test_the_head_of_a_message_that_leaves() -> None:
    assert return_path("a@example.org") == b"Return-Path: <a@example.org>\r\n"
    assert return_path("") == b"Return-Path: <>\r\n"
    assert return_path("ü@b") == "Return-Path: <ü@b>\r\n".encode()
    assert delivered_to("jo+tag@example.org") == b"Delivered-To: jo+tag@example.org\r\n"
    assert delivered_to("jo\r\nX: y@b") == b"Delivered-To: joX: y@b\r\n"


@pytest.mark.parametrize("sender", ["", "a@b", "ü@bücher.example"])
@pytest.mark.parametrize("address", ["jo@example.org", "ö@b"])
def test_the_size_of_the_head_is_known_without_making_it(sender: str, address: str) -> None:
    head = in_front(sender, address)
    assert head == return_path(sender) + delivered_to(address)
    assert IN_FRONT_SIZE + len(sender.encode()) + len(address.encode()) == len(head)


@pytest.mark.parametrize("seconds", [0, 1, 951782400, 1767225600, 4102444799])
def test_the_date_is_that_of_the_library(seconds: int) -> None:
    parsed = email.utils.parsedate_to_datetime(date(seconds).decode())
    assert parsed.timestamp() == seconds
    weekday = date(seconds).decode()[:3]
    assert weekday == email.utils.formatdate(seconds)[:3]
