"""The response reader: the same for every cut, and nothing without a limit."""

from __future__ import annotations

import random

import pytest

from metad.filters.http import BODY_LIMIT, HEAD_LIMIT, HttpError, Response, ResponseReader, request
from tests.support.sizes import SEED, scaled

WHOLE = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", Response(200, b"ab", True)),
    (b"HTTP/1.1 200\r\ncontent-length:0\r\n\r\n", Response(200, b"", True)),
    (b"HTTP/1.0 500 No\r\nContent-Length: 1\r\n\r\nx", Response(500, b"x", False)),
    (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx",
     Response(200, b"x", True)),
    (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 1\r\n\r\nx",
     Response(200, b"x", False)),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
     Response(200, b"x", True)),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
     Response(200, b"x", True)),
]  # fmt: skip


@pytest.mark.parametrize(("octets", "response"), WHOLE)
def test_a_response_is_the_same_for_every_cut(octets: bytes, response: Response) -> None:
    assert ResponseReader().feed(octets) == response
    for at in range(len(octets)):
        reader = ResponseReader()
        assert at == 0 or reader.feed(octets[:at]) is None
        assert reader.feed(octets[at:]) == response
    reader = ResponseReader()
    found = [reader.feed(octets[at : at + 1]) for at in range(len(octets))]
    assert found == [None] * (len(octets) - 1) + [response]


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\nab") is None
    assert reader.feed(b"c") is None
    assert reader.eof() == Response(200, b"abc", False)


@pytest.mark.parametrize(
    "octets",
    [
        b"220 smtp.example.org ESMTP\r\n\r\n", b"HTTP/2 200 OK\r\n\r\n", b"HTTP/1.1 999 X\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (BODY_LIMIT + 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxy",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * (HEAD_LIMIT // 6),
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (BODY_LIMIT + 1),
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * HEAD_LIMIT + b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000,
    ],
)  # fmt: skip
def test_what_is_no_response_is_an_error(octets: bytes) -> None:
    with pytest.raises(HttpError):
        ResponseReader().feed(octets)


@pytest.mark.parametrize(
    "octets", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na"]
)
def test_the_end_in_the_middle_is_an_error(octets: bytes) -> None:
    reader = ResponseReader()
    if octets:
        assert reader.feed(octets) is None
    with pytest.raises(HttpError):
        reader.eof()


def test_any_bytes_are_a_response_or_an_error() -> None:
    dice = random.Random(SEED)
    for _ in range(scaled(3_000)):
        octets = bytearray(dice.choice(WHOLE)[0])
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(octets))
            octets[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
            if not octets:
                octets = bytearray(b"x")
        reader = ResponseReader()
        try:
            found = reader.feed(bytes(octets))
            assert found is None or 200 <= found.status < 600
        except HttpError:
            pass


@pytest.mark.slow
def test_a_body_in_single_bytes_costs_no_square() -> None:
    """Half a megabyte: adding up all pieces each time would take hours."""
    reader = ResponseReader()
    reader.feed(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(BODY_LIMIT):
        reader.feed(b"x")
    assert len(reader.eof().body) == BODY_LIMIT


def test_no_value_makes_a_second_header_of_a_request() -> None:
    head = request("/x", [("Helo", "a\r\nEvil: b\0\x7f"), ("From", "ä@ö")], 3)
    assert head.decode() == (
        "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
        "Helo: a  Evil: b  \r\nFrom: ä@ö\r\n\r\n"
    )
