"""Frames: what is written comes out again, however it is cut; what is no frame is refused."""

from __future__ import annotations

import random

import pytest

from metad.cluster.frames import (
    HEAD,
    HEAD_SIZE,
    MORE,
    MOST_BODY,
    PIECE,
    Decoder,
    Frame,
    FrameError,
    Kind,
    encode,
    pieces,
)
from tests.support.sizes import SEED


def decode(data: bytes, sizes: list[int] | None = None) -> list[Frame]:
    decoder, at = Decoder(), 0
    found: list[Frame] = []
    for size in sizes or [len(data)]:
        found += decoder.feed(data[at : at + size])
        at += size
    return found


def test_a_frame_comes_out_as_it_went_in():
    data = encode(Kind.COPY, 7, 9, (b"head", memoryview(b"body"), bytearray(b"!")), 9)
    assert decode(data) == [(Kind.COPY, 0, 7, 9, b"headbody!")]


def test_an_empty_frame():
    assert decode(encode(Kind.PING, 0, 1, (), 0)) == [(Kind.PING, 0, 0, 1, b"")]


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 17])
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_pieces_join_to_the_body(size: int, parts: int) -> None:
    rng = random.Random(SEED + size)
    body = rng.randbytes(size)
    at = sorted(rng.randrange(size + 1) for _ in range(parts - 1))
    cut = [body[a:b] for a, b in zip([0, *at], [*at, size], strict=True)]
    frames = decode(b"".join(pieces(Kind.FETCH, 3, 4, cut)))
    assert b"".join(frame[4] for frame in frames) == body
    assert [frame[1] for frame in frames] == [MORE] * (len(frames) - 1) + [0]
    assert {frame[:1] + frame[2:4] for frame in frames} == {(Kind.FETCH, 3, 4)}
    assert len(frames) == max(1, -(-size // PIECE))


def test_every_cut_gives_the_same_frames():
    rng = random.Random(SEED)
    wanted = []
    data = b""
    for tag in range(40):
        body = rng.randbytes(rng.choice([0, 1, 15, 16, 17, 5000]))
        wanted.append((Kind.COPY, 0, tag, 1, body))
        data += encode(Kind.COPY, tag, 1, (body,), len(body))
    assert decode(data) == wanted
    for _ in range(30):
        sizes: list[int] = []
        while sum(sizes) < len(data):
            sizes.append(rng.choice([1, 2, 15, 16, 17, 100, 6000]))
        assert decode(data, sizes) == wanted


@pytest.mark.parametrize(
    ("head", "text"),
    [
        ((MOST_BODY + 1, 16, 0, 0, 1, 1), "too long"),
        ((0xFFFFFFFF, 16, 0, 0, 1, 1), "too long"),
        ((0, 0, 0, 0, 1, 1), "unknown kind 0"),
        ((0, 5, 0, 0, 1, 1), "unknown kind 5"),
        ((0, 255, 0, 0, 1, 1), "unknown kind 255"),
        ((0, 16, 2, 0, 1, 1), "unknown flags 2"),
        ((PIECE - 1, 16, MORE, 0, 1, 1), "too small"),
        ((0, 16, 0, 1, 1, 1), "not ours"),
    ],
)
def test_what_is_no_frame_is_refused_by_its_head(head: tuple[int, ...], text: str) -> None:
    decoder = Decoder()
    good = encode(Kind.PING, 0, 1, (), 0)
    found = []
    with pytest.raises(FrameError, match=text):
        for frame in decoder.feed(good + HEAD.pack(*head)):
            found.append(frame)  # noqa: PERF402 - what came before the fault counts
    assert found == [(Kind.PING, 0, 0, 1, b"")]


def test_the_longest_body_is_taken():
    body = bytes(MOST_BODY)
    assert decode(HEAD.pack(MOST_BODY, 16, 0, 0, 1, 1) + body) == [(16, 0, 1, 1, body)]


def test_a_long_body_in_small_cuts_is_joined_once():
    """A cut must not copy what is held."""
    body = bytes(PIECE)
    data = encode(Kind.COPY, 1, 1, (body,), PIECE)
    decoder = Decoder()
    held = [len(decoder._parts)]
    for at in range(0, len(data) - 16, 16):
        assert list(decoder.feed(data[at : at + 16])) == []
        held.append(len(decoder._parts))
    assert held[-1] >= PIECE // 16 - 1
    assert list(decoder.feed(data[-16:])) == [(Kind.COPY, 0, 1, 1, body)]
    assert decoder._parts == []


def test_the_head_is_as_documented():
    assert HEAD_SIZE == 16
    assert (
        encode(Kind.ANSWER, 0x01020304, 0x0A0B0C0D, (b"x",), 1)
        == bytes.fromhex("00000001 20 00 0000 01020304 0a0b0c0d".replace(" ", "")) + b"x"
    )
