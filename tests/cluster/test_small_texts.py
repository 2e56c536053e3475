"""TEXTS: what goes over the link for several small messages."""

from __future__ import annotations

import pytest

from metad.cluster.small_texts import (
    MOST_TEXTS,
    NOT_SENT,
    TEXT_HEAD,
    TEXTS_SIZE,
    pack_ask,
    pack_texts,
    unpack_ask,
    unpack_texts,
)
from metad.errors import ClusterError
from tests.cluster.test_mail import an_id

TEXTS = [b"one", None, b"", b"a longer one" * 20]


def test_a_request_names_a_mailbox_and_messages() -> None:
    ids = [an_id(number) for number in range(MOST_TEXTS)]
    assert unpack_ask(pack_ask(7, ids)) == (7, ids)


@pytest.mark.parametrize(
    "body",
    [b"", b"\0\0\0\7", pack_ask(7, [b"x" * 15]), pack_ask(7, [an_id(1)] * (MOST_TEXTS + 1))],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(ClusterError):
        unpack_ask(body)


def test_texts_come_in_their_order_and_some_may_be_missing() -> None:
    assert unpack_texts(b"".join(pack_texts(TEXTS)), len(TEXTS)) == TEXTS


def test_an_answer_is_one_frame() -> None:
    texts = [bytes(TEXTS_SIZE - 2 * TEXT_HEAD), b"", b"no room", b"none either"]
    body = b"".join(pack_texts(texts))
    assert len(body) <= TEXTS_SIZE + 4 * len(texts)
    assert unpack_texts(body, 4) == [texts[0], b"", None, None]


def test_every_flipped_bit_costs_a_text_and_gives_no_other_one() -> None:
    good = b"".join(pack_texts(TEXTS))
    for at in range(len(good) * 8):
        broken = bytearray(good)
        broken[at // 8] ^= 1 << at % 8
        try:
            found = unpack_texts(bytes(broken), len(TEXTS))
        except ClusterError:
            continue
        assert found != TEXTS
        assert all(one in (None, text) for one, text in zip(found, TEXTS, strict=True))


def test_an_answer_to_another_request_is_refused() -> None:
    body = b"".join(pack_texts(TEXTS))
    for bad, count in ((body, 3), (body, 5), (body[:-1], 4), (body + b"x", 4), (b"", 1)):
        with pytest.raises(ClusterError):
            unpack_texts(bad, count)
    assert unpack_texts(NOT_SENT.to_bytes(4, "big"), 1) == [None]
