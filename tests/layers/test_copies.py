"""Copies of one message that name different mailboxes, as another node may send them."""

from __future__ import annotations

import msgpack
import pytest

from metad.cluster.copies import pack_copy, unpack_copies, unpack_copy
from metad.errors import ClusterError
from metad.layers.bench import Bench, stuff
from metad.layers.logs import LogLayer
from metad.store.log import record
from tests.layers.test_conformance import TestLog as Log

MESSAGE = b"Subject: x\r\n\r\n"


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 2 << 20], ids=["small", "streamed"])
@pytest.mark.parametrize("mailbox", [1, 2, 3])
def test_each_mailbox_gets_the_copy_that_names_it(mailbox: int, size: int) -> None:
    body = MESSAGE + b"y" * size + b"\r\n"
    with Bench(Log()) as bench:
        layer = bench.its_layer
        assert isinstance(layer, LogLayer)
        first = bench.envelope([1], body)
        answers: list[object] = []
        for mailboxes in ([1], [2], [3]):
            copy = bench.envelope(mailboxes, body)._replace(id=first.id)
            layer.deliver(copy, stuff(body), answers.append)
        bench.loop.run_until(lambda: len(answers) == 3)
        assert answers == [None] * 3
        drop = bench.open(mailbox)
        assert len(drop) == 1
        assert drop.uid(1) == first.id.hex()
        sent = b"".join(map(bytes, drop.fetch(1, 8 << 20)))
        assert b"user%d@example.org" % mailbox in sent[:200]
        assert sent.endswith(body + b".\r\n")
        assert len(sent) - len(b".\r\n") == drop.size(1)
        drop.close()


def test_a_copy_for_no_mailbox_is_refused() -> None:
    envelope = record.Envelope(1, "192.0.2.1", "h", "s@x", ())
    body = pack_copy(bytes(16), "", record.pack_envelope(envelope), [b"x"])
    with pytest.raises(ClusterError, match="for no mailbox"):
        unpack_copy(b"".join(body))


SOUND = (1, "192.0.2.1", "h", "s@x", ((7, "u@x", 5),), 0)


def make_copy(envelope: object) -> bytes:
    return b"".join(pack_copy(bytes(16), "", msgpack.packb(envelope), [b"x"]))


@pytest.mark.parametrize(
    "envelope",
    [
        *[(*SOUND[:4], (recipient,), 0) for recipient in (
            (1 << 32, "u@x", 5), (-1, "u@x", 5), ("7", "u@x", 5), (7.0, "u@x", 5), (True, "u@x", 5),
            (7, None, 5), (7, b"u@x", 5), (7, "u@x", -1), (7, "u@x", 1 << 32), (7, "u@x", "5"),
        )],
        *[(*SOUND[:place], wrong, *SOUND[place + 1 :]) for place, wrong in (
            (0, "1"), (1, None), (2, b"h"), (3, None), (4, {}), (5, "0"),
        )],
        (*SOUND, 5),
    ],
)  # fmt: skip
def test_a_copy_that_no_log_can_hold_is_refused_and_no_other_one(envelope: object) -> None:
    sound, other = make_copy(SOUND), make_copy(envelope)
    found = unpack_copies(sound + other + sound)
    assert [isinstance(one, ClusterError) for one in found] == [False, True, False]
