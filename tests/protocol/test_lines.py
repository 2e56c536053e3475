"""LineBuffer: lines and faults, however the octets are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.protocol.lines import DISCARD_LIMIT, Fault, LineBuffer

LIMIT = 8


def lines_of(*pieces: bytes) -> list[bytes | Fault]:
    buffer = LineBuffer(LIMIT)
    found = []
    for piece in pieces:
        buffer.push(piece)
        while (line := buffer.line()) is not None:
            found.append(line)
            if line is Fault.FLOOD:
                return found
    return found


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"", []),
        (b"a\r\n", [b"a"]),
        (b"a\r\n\r\nb\r\nc", [b"a", b"", b"b"]),
        (b"12345678\r\n", [b"12345678"]),
        (b"123456789\r\nb\r\n", [Fault.LONG, b"b"]),
        (b"123456789", []),  # its next octets must not be a line end, but one more may be a CR
        (b"1234567890", [Fault.LONG]),
        (b"12345678\r", []),
        (b"a\rb\r\nc\r\n", [Fault.BARE, b"c"]),
        (b"a\0b\r\nc\r\n", [Fault.BARE, b"c"]),
        (b"a\nb\r\nc\r\n", [Fault.BARE, b"c"]),
        (b"a\n", [Fault.BARE]),
        (b"\n\n\n\r\nc\r\n", [Fault.BARE, b"c"]),
        (b"a\r\r\nc\r\n", [Fault.BARE, b"c"]),
        (b"12345678\nb\r\nc\r\n", [Fault.BARE, b"c"]),
        (b"123456789\nb\r\nc\r\n", [Fault.LONG, b"c"]),
        (b"123456789\0\r\nc\r\n", [Fault.LONG, b"c"]),
    ],
)
def test_bytes_become_lines_and_faults_at_every_cut(
    octets: bytes, expected: list[bytes | Fault]
) -> None:
    assert lines_of(octets) == expected
    assert lines_of(*(octets[i : i + 1] for i in range(len(octets)))) == expected
    for at in range(len(octets)):
        assert lines_of(octets[:at], octets[at:]) == expected


@pytest.mark.slow
@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"\0", b"a", b"bcd", b"e" * 9])))
def test_any_bytes_give_the_same_lines_whole_and_byte_by_byte(pieces: list[bytes]) -> None:
    octets = b"".join(pieces)
    assert lines_of(*(octets[i : i + 1] for i in range(len(octets)))) == lines_of(octets)


def test_a_bad_line_that_does_not_end_is_a_flood_whole_and_cut() -> None:
    octets = b"x" * (DISCARD_LIMIT + 1)
    expected = [Fault.LONG, Fault.FLOOD]
    assert lines_of(octets) == expected
    assert lines_of(octets + b"\r\na\r\n") == expected
    assert lines_of(*(octets[i : i + 999] for i in range(0, len(octets), 999))) == expected


def test_a_bad_line_is_dropped_to_the_limit_without_a_flood() -> None:
    octets = b"x" * DISCARD_LIMIT + b"\r\na\r\n"
    assert lines_of(octets) == [Fault.LONG, b"a"]
    assert lines_of(*(octets[i : i + 999] for i in range(0, len(octets), 999))) == [
        Fault.LONG,
        b"a",
    ]


def test_what_is_dropped_is_not_kept() -> None:
    buffer = LineBuffer(LIMIT)
    buffer.push(b"x" * 100)
    assert buffer.line() is Fault.LONG
    assert buffer.line() is None
    assert len(buffer) == 0


def test_bytes_behind_a_line_stay_in_the_buffer() -> None:
    buffer = LineBuffer(LIMIT)
    buffer.push(b"a\r\nbody")
    assert buffer.line() == b"a"
    assert buffer.data[buffer.position :] == b"body"
    assert len(buffer) == 4
