"""Ends, counts, stuffing and repair of bodies, however they are cut."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.protocol.dots import Counter, EndFinder, Repairer, Stuffer
from metad.protocol.headers import HeaderScanner, look_at

PIECES = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"\0", b"a", b"\r\n.\r\n", b"Received: x"])
)


def cuts(octets: bytes) -> list[list[bytes]]:
    """Whole, octet by octet, and in two at every position."""
    every = [[octets[:at], octets[at:]] for at in range(1, len(octets))]
    return [[octets], [octets[i : i + 1] for i in range(len(octets))], *every]


def end_of(pieces: list[bytes]) -> int:
    finder = EndFinder()
    before = 0
    for piece in pieces:
        end = finder.find(b"##" + piece, 2)
        if end >= 0:
            return before + end - 2
        before += len(piece)
    return -1


@pytest.mark.parametrize(
    ("octets", "end"),
    [
        (b".\r\n", 3),
        (b".\r\nx\r\n.\r\n", 3),
        (b"a\r\n.\r\n", 6),
        (b"a\r\n.\r\nb\r\n.\r\n", 6),
        (b"\r\n.\r\n", 5),
        (b"\r\n.\r\n.\r\n", 5),
        (b"a\r\n..\r\n.\r\n", 10),
        (b"a.\r\n", -1),
        (b"a\n.\r\n", -1),
        (b"a\r\n.\n", -1),
        (b"a\r.\r\n", -1),
        (b"a\r\n.\r", -1),
        (b".\n\r\n", -1),
    ],
)
def test_only_a_dot_line_between_line_ends_ends_a_message(octets: bytes, end: int) -> None:
    for pieces in cuts(octets):
        assert end_of(pieces) == end


@pytest.mark.slow
@given(PIECES)
def test_the_end_is_where_a_plain_search_finds_it(parts: list[bytes]) -> None:
    octets = b"".join(parts)
    at = (b"\r\n" + octets).find(b"\r\n.\r\n")
    for pieces in cuts(octets):
        assert end_of(pieces) == (at + 3 if at >= 0 else -1)


def counted(pieces: list[bytes]) -> tuple[int, int, str | None, bool]:
    counter = Counter()
    for piece in pieces:
        counter.feed(piece)
    return counter.octets, counter.dots, counter.fault, counter.at_line_start


def expected_fault(octets: bytes) -> str | None:
    if re.search(rb"(?<!\r)\n", octets):
        return "<LF>"
    if re.search(rb"\r(?!\n|\Z)", octets):
        return "<CR>"
    return "<NUL>" if b"\0" in octets else None


@pytest.mark.slow
@given(PIECES)
def test_counts_are_those_of_plain_patterns_at_every_cut(parts: list[bytes]) -> None:
    octets = b"".join(parts)
    dots = len(re.findall(rb"(?<=\r\n)\.", b"\r\n" + octets))
    at_start = (b"\r\n" + octets).endswith(b"\r\n")
    for pieces in cuts(octets):
        assert counted(pieces) == (len(octets), dots, expected_fault(octets), at_start)


def stuffed(pieces: list[bytes]) -> bytes:
    stuffer = Stuffer()
    return b"".join(stuffer.feed(piece) for piece in pieces)


@pytest.mark.slow
@given(PIECES)
def test_a_dot_is_stuffed_in_front_of_every_line_with_one(parts: list[bytes]) -> None:
    octets = b"".join(parts)
    expected = re.sub(rb"(?<=\r\n)\.", b"..", b"\r\n" + octets)[2:]
    for pieces in cuts(octets):
        assert stuffed(pieces) == expected


def repaired(pieces: list[bytes], *, double: bool) -> bytes:
    repairer = Repairer(double_lone_dots=double)
    given_out = [repairer.feed(piece) for piece in pieces]
    return b"".join([*given_out, repairer.feed(b"", final=True)])


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"a\nb\r\n", b"a\r\nb\r\n"),
        (b"a\rb\r\n", b"a\r\nb\r\n"),
        (b"a\r\r\nb", b"a\r\n\r\nb"),
        (b"a\n\rb", b"a\r\n\r\nb"),
        (b"a\n.\r\nb\r\n", b"a\r\n..\r\nb\r\n"),
        (b"a\r\n.\nb\r\n", b"a\r\n..\r\nb\r\n"),
        (b"a\n.\n.\n.\nb\r\n", b"a\r\n..\r\n..\r\n..\r\nb\r\n"),
        (b".\nb\r\n", b"..\r\nb\r\n"),
        (b".\rb\r\n", b"..\r\nb\r\n"),
        (b"a.\nb\r\n", b"a.\r\nb\r\n"),
        (b"a\n.b\r\n", b"a\r\n.b\r\n"),
        (b"a\n..\n", b"a\r\n..\r\n"),
        (b"a\r", b"a\r\n"),
    ],
)
def test_repair_makes_line_ends_and_never_a_lone_dot(octets: bytes, expected: bytes) -> None:
    for pieces in cuts(octets):
        assert repaired(pieces, double=True) == expected


@pytest.mark.slow
@given(PIECES)
def test_repaired_bytes_have_no_bare_line_end_and_no_message_end(parts: list[bytes]) -> None:
    octets = re.sub(rb"(?<=\n)\.\r\n", b"", b"\r\n" + b"".join(parts))[2:]
    octets = octets.removeprefix(b".\r\n")
    whole = repaired([octets], double=True)
    assert expected_fault(whole) in {None, "<NUL>"}
    for pieces in cuts(octets):
        assert repaired(pieces, double=True) == whole
        assert repaired(pieces, double=False) == re.sub(rb"\r\n|\r|\n", b"\r\n", octets)


@pytest.mark.slow
@given(PIECES)
def test_repair_never_makes_an_end_of_message(parts: list[bytes]) -> None:
    octets = b"".join(parts)
    if end_of([octets]) < 0 and not octets.endswith((b".", b".\r")):
        assert end_of([repaired([octets], double=True)]) < 0


def scanned(pieces: list[bytes]) -> tuple[bool, int]:
    scanner = HeaderScanner()
    for piece in pieces:
        scanner.feed(piece)
    return scanner.starts_with_header, scanner.received


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b".\r\n", (False, 0)),
        (b"Subject: x\r\n\r\nb\r\n.\r\n", (True, 0)),
        (b"Subject : x\r\n.\r\n", (True, 0)),
        (b"\r\nReceived: in the body\r\n.\r\n", (True, 0)),
        (b"hello world: no\r\n.\r\n", (False, 0)),
        (b" folded: x\r\n.\r\n", (False, 0)),
        (b": x\r\n.\r\n", (False, 0)),
        (b"no colon\r\nReceived: x\r\n.\r\n", (False, 1)),
        (b"\rX: y\r\n.\r\n", (False, 0)),
        (b"Received: a\r\nRECEIVED: b\r\nreceived: c\r\n\r\nReceived: d\r\n.\r\n", (True, 3)),
        (b"A: b\r\nReceived: a\r\n\r\nReceived: d\r\n\r\nReceived: e\r\n.\r\n", (True, 1)),
        (b"X-Received: a\r\nY: Received: b\r\n\r\n.\r\n", (True, 0)),
        (b"x" * 999 + b": too long\r\n.\r\n", (True, 0)),
        (b"x" * 1000 + b": too long\r\n.\r\n", (False, 0)),
    ],
)
def test_the_header_is_understood_at_every_cut(octets: bytes, expected: tuple[bool, int]) -> None:
    assert look_at(octets) == expected
    for pieces in cuts(octets):
        assert scanned(pieces) == expected


@pytest.mark.slow
@given(PIECES)
def test_any_header_is_understood_alike_at_every_cut(parts: list[bytes]) -> None:
    octets = b"".join(parts)
    for pieces in cuts(octets):
        assert scanned(pieces) == look_at(octets)


def test_short_strings_of_the_bytes_that_matter_are_counted_alike_at_every_cut() -> None:
    for parts in product([b"\r", b"\n", b".", b"a"], repeat=5):
        octets = b"".join(parts)
        counts = counted([octets])
        assert all(counted(pieces) == counts for pieces in cuts(octets))
