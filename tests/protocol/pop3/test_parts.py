"""The parts of POP3: command lines, TOP's cutter, SASL responses."""

from __future__ import annotations

import base64
import itertools

import pytest

from metad.protocol import sasl
from metad.protocol.pop3.lines import DISCARD_LIMIT, EndlessLineError, LineError, LineReader
from metad.protocol.pop3.top import TopCutter

HEADER_ONLY = b"A: b\r\nC: d\r\n.\r\n"
LONG = b"A: b\r\n\r\none\r\n\r\n..three\r\nfour\r\n.\r\n"
NO_HEADER = b"\r\nbody\r\n.\r\n"
EMPTY = b".\r\n"


def expected_top(message: bytes, lines: int) -> bytes:
    """TOP by the book, slowly: lines of the whole message."""
    header, blank, body = (b"\r\n" + message[:-3]).partition(b"\r\n\r\n")
    head = (header + blank)[2:] if blank else header[2:]
    kept = body.split(b"\r\n")[:-1][:lines]
    return head + b"".join(line + b"\r\n" for line in kept) + b".\r\n"


def cut(pieces: list[bytes], lines: int) -> bytes:
    cutter = TopCutter(lines)
    given = b""
    for piece in pieces:
        if not cutter.done:
            given += cutter.cut(piece)
    assert cutter.done
    return given


@pytest.mark.parametrize("message", [HEADER_ONLY, LONG, NO_HEADER, EMPTY])
@pytest.mark.parametrize("lines", [0, 1, 2, 3, 4, 5, 1000])
def test_top_is_cut_alike_at_every_pair_of_places(message: bytes, lines: int) -> None:
    wanted = expected_top(message, lines)
    for a, b in itertools.combinations_with_replacement(range(len(message) + 1), 2):
        pieces = [p for p in (message[:a], message[a:b], message[b:]) if p]
        assert cut(pieces, lines) == wanted
    assert cut([message[i : i + 1] for i in range(len(message))], lines) == wanted


def test_lines_may_end_in_lf_alone() -> None:
    reader = LineReader()
    reader.feed(b"one\n\ntwo\r\n\r\nx")
    assert [reader.next_line(255) for _ in range(5)] == [b"one", b"", b"two", b"", None]


def test_lines_come_out_without_their_ends_and_wait_for_them() -> None:
    reader = LineReader()
    assert reader.next_line(255) is None
    reader.feed(b"one\r\ntwo\r\nthr")
    assert [reader.next_line(255), reader.next_line(255), reader.next_line(255)] == [
        b"one",
        b"two",
        None,
    ]
    assert reader.buffered == 3
    reader.feed(b"ee\r")
    assert reader.next_line(255) is None
    reader.feed(b"\n")
    assert reader.next_line(255) == b"three"
    assert reader.buffered == 0


@pytest.mark.parametrize("bad", [b"a\rb\r\n", b"a\rb\n", b"\r\r\n", b"a\0\r\n", b"\0\r\n"])
def test_a_bad_line_raises_once_and_is_skipped(bad: bytes) -> None:
    reader = LineReader()
    reader.feed(bad + b"good\r\n")
    with pytest.raises(LineError):
        reader.next_line(255)
    assert reader.next_line(255) == b"good"


@pytest.mark.slow
@pytest.mark.parametrize("length", [9, 10, 100, DISCARD_LIMIT, DISCARD_LIMIT + 1])
@pytest.mark.parametrize("step", [1, 7, DISCARD_LIMIT * 2])
def test_a_line_that_is_too_long_is_judged_alike_however_it_comes(length: int, step: int) -> None:
    line = b"x" * (length - 2) + b"\r\n"
    reader = LineReader()
    seen: list[object] = []
    for start in range(0, length, step):
        reader.feed(line[start : start + step])
        try:
            got = reader.next_line(9)
        except LineError as error:
            seen.append(type(error))
            break
        assert reader.buffered <= 9
        if got is not None:
            seen.append(got)
    wanted = (
        line[:-2] if length <= 9 else LineError if length <= DISCARD_LIMIT else EndlessLineError
    )
    assert seen == [wanted]


def test_clear_forgets_everything() -> None:
    reader = LineReader()
    reader.feed(b"x" * 300)
    assert reader.next_line(255) is None
    reader.clear()
    reader.feed(b"a\r\n")
    assert reader.next_line(255) == b"a"


@pytest.mark.parametrize(
    ("message", "credentials"),
    [
        (b"\0bob\0secret", ("bob", "bob", b"secret")),
        (b"bob\0bob\0secret", ("bob", "bob", b"secret")),
        (b"eve\0bob\0secret", ("eve", "bob", b"secret")),
        (b"\0b\xc3\xb6b\0\xff ", ("böb", "böb", b"\xff ")),
    ],
)
def test_plain_messages(message: bytes, credentials: tuple[str, str, bytes]) -> None:
    assert sasl.plain(message) == credentials


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"bob",
        b"bob\0secret",
        b"\0bob\0",
        b"\0\0secret",
        b"\0bob\0sec\0ret",
        b"\0bo\0b\0secret",
        b"a" * 513 + b"\0bob\0secret",
        b"\0" + b"a" * 513 + b"\0secret",
        b"e\nve\0bob\0secret",
        b"\0\xff\0secret",
        b"\xff\0bob\0secret",
        b"\0b\nb\0secret",
    ],
)
def test_what_is_no_plain_message(message: bytes) -> None:
    with pytest.raises(sasl.SaslError):
        sasl.plain(message)


def test_base64_is_strict() -> None:
    good = base64.b64encode(b"hello")
    assert sasl.decode(good) == b"hello"
    assert sasl.decode(b"") == b""
    assert sasl.decode_initial(b"=") == b""
    assert sasl.decode_initial(good) == b"hello"
    for bad in (b"*", b"=", good[:-1], good + b"=", b" " + good, b"aGVs!bG8=", b"\xff"):
        with pytest.raises(sasl.SaslError):
            sasl.decode(bad)
