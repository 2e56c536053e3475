"""Header fields: split off for every cut, removed, made."""

from __future__ import annotations

import random

import pytest

from metad.filters.fields import (
    HEADER_LIMIT,
    FieldError,
    HeaderSplitter,
    make_field,
    remove,
    without,
)
from tests.support.sizes import SEED, scaled

MESSAGES = [
    (b"A: b\r\nC: d\r\n\r\n", b"body\r\n.\r\n"),
    (b"A: b\r\n", b".\r\n"),
    (b"", b".\r\n"),
    (b"\r\n", b"body\r\n\r\nmore\r\n.\r\n"),
    (b"\r\n", b"\r\n.\r\n"),
    (b"A: b\r\n..dotted\r\n\r\n", b"..\r\n.\r\n"),
    (b"A: b\r\n\tfolded\r\n \r\nC: d\r\n\r\n", b"x\r\n.\r\n"),
]


def split(*pieces: bytes) -> tuple[bytes, bytes]:
    splitter = HeaderSplitter()
    rest = b"".join([splitter.feed(piece) for piece in pieces])
    assert splitter.done
    assert not splitter.too_large
    return splitter.header, rest


@pytest.mark.parametrize(("header", "rest"), MESSAGES)
def test_header_and_rest_are_the_same_for_every_cut(header: bytes, rest: bytes) -> None:
    wire = header + rest
    assert split(wire) == (header, rest)
    assert split(*(wire[at : at + 1] for at in range(len(wire)))) == (header, rest)
    for at in range(len(wire)):
        assert split(wire[:at], wire[at:]) == (header, rest)


def test_a_header_above_the_limit_is_given_up_and_kept_no_longer() -> None:
    splitter = HeaderSplitter()
    line = b"X: " + b"y" * 995 + b"\r\n"
    for _ in range(HEADER_LIMIT // len(line) + 1):
        splitter.feed(line)
    assert splitter.too_large
    assert splitter.held == 0
    assert splitter.feed(b"more") == b"more"


def test_a_header_of_the_limit_is_taken() -> None:
    header = b"X: y\r\n" * ((HEADER_LIMIT - 2) // 6)
    header += b"Z" * 0 + b"\r\n"
    assert split(header + b"body\r\n.\r\n") == (header, b"body\r\n.\r\n")


@pytest.mark.slow
def test_a_header_in_small_pieces_costs_no_square() -> None:
    """131,072 octets, two at a time: copying all of them each time would take seconds."""
    header = b"X: y\r\n" * 21_000
    splitter = HeaderSplitter()
    for at in range(0, len(header), 2):
        assert splitter.feed(header[at : at + 2]) == b""
    assert splitter.feed(b"\r\nrest") == b"rest"
    assert splitter.header == header + b"\r\n"


HEADER = b"A: 1\r\nB: 2\r\n folded\r\nb : 3\r\nA:4\r\nno field\r\nAB: 5\r\n\r\n"


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ([("a", 0)], b"B: 2\r\n folded\r\nb : 3\r\nno field\r\nAB: 5\r\n\r\n"),
        ([("A", 1)], b"B: 2\r\n folded\r\nb : 3\r\nA:4\r\nno field\r\nAB: 5\r\n\r\n"),
        ([("B", -1)], b"A: 1\r\nB: 2\r\n folded\r\nA:4\r\nno field\r\nAB: 5\r\n\r\n"),
        ([("B", -2)], b"A: 1\r\nb : 3\r\nA:4\r\nno field\r\nAB: 5\r\n\r\n"),
        ([("A", 2), ("ab", 1)], b"A: 1\r\nB: 2\r\n folded\r\nb : 3\r\nno field\r\n\r\n"),
        ([("A", 3), ("A", -3), ("missing", 0), ("ä", 0)], HEADER),
        ([], HEADER),
    ],
)
def test_fields_are_removed_by_number(fields: list[tuple[str, int]], left: bytes) -> None:
    assert remove(HEADER, fields) == left


def test_a_continuation_line_without_an_end_belongs_to_no_field() -> None:
    """Python before 3.11.5 keeps a part of a possessive group that fails."""
    assert remove(b"a: b\n c\n d", [("a", 0)]) == b" d"


def test_a_test_sees_names_and_values() -> None:
    seen: list[tuple[bytes, bytes]] = []
    without(HEADER, lambda name, value: bool(seen.append((name, value))))
    assert seen == [
        (b"a", b" 1\r\n"), (b"b", b" 2\r\n folded\r\n"), (b"b", b" 3\r\n"), (b"a", b"4\r\n"),
        (b"ab", b" 5\r\n"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("plain", b"X-Y: plain\r\n"),
        ("", b"X-Y:\r\n"),
        ("folded\r\n\tvalue", b"X-Y: folded value\r\n"),
        ("folded\n value\n", b"X-Y: folded value\r\n"),
        ("räksmörgås", "X-Y: räksmörgås\r\n".encode()),
        ("word " * 30, b"X-Y: " + b" ".join([b"word"] * 14) + b"\r\n\t" +
         b" ".join([b"word"] * 15) + b"\r\n\tword\r\n"),
        ("x" * 900, b"X-Y: " + b"x" * 900 + b"\r\n"),
    ],
)  # fmt: skip
def test_a_field_is_folded(value: str, field: bytes) -> None:
    assert make_field("X-Y", value) == field


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", "a\r\nBcc: b"), ("X", "a\nb"), ("X", "a\rb"), ("X", "a\0b"), ("X", "a\x7fb"),
        ("X", "x" * 999), ("X Y", "a"), ("X:", "a"), ("", "a"), ("X\r\nY", "a"), ("Ä", "a"),
        ("x" * 71, "a"), ("X", "a\r\n\r\nbody"),
    ],
)  # fmt: skip
def test_what_may_not_stand_in_a_header_is_an_error(name: str, value: str) -> None:
    with pytest.raises(FieldError):
        make_field(name, value)


@pytest.mark.slow
def test_no_value_makes_a_second_field() -> None:
    dice = random.Random(SEED)
    letters = "a \t\r\n:ä\0\x85\u2028"
    made = 0
    for _ in range(scaled(2_000)):
        value = "".join(dice.choice(letters) for _ in range(dice.randrange(200)))
        try:
            field = make_field("X", value)
        except FieldError:
            continue
        made += 1
        lines = field.split(b"\r\n")
        assert lines.pop() == b""
        assert all(line.startswith(b"\t") and line.strip() for line in lines[1:])
        assert b"\r" not in b"".join(lines)
        assert b"\n" not in b"".join(lines)
    assert made
