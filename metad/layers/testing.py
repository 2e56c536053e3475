"""What every layer must do, as tests that any test runner collects (docs/layers.md).

    from metad.layers.testing import Conformance

    class TestMine(Conformance):
        layer = MyLayer

pytest runs this as it is; with unittest: `class TestMine(Conformance, unittest.TestCase)`.

Rules of this file:

* Only the interface is used: a layer that passes here works in a worker.
* Every test has its own environment (metad.layers.bench), and leaves nothing behind.
* A layer that is not a mail store declares it: `serves = False` and its own `stored`, or
  `forgets = True`.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metad.errors import MailboxInUseError, RefusedError
from metad.layers.base import Layer, LayerContext, Maildrop
from metad.layers.bench import SENDER, TRACE, Bench, demand
from metad.limits import MESSAGE_GIVEN

HEADER = b"Subject: a test\r\n\r\n"
AWKWARD = (
    b".\r\n..\r\n.dot in front\r\n...three\r\nno dot\r\n\r\n \r\nFrom the start\r\n"
    b"8-bit \xe4\xf6\xfc\r\n" + b"long " * 300 + b"\r\n.\r\n"
)


class Conformance:
    """The tests.  Set `layer`, and override what your layer needs."""

    layer: type[Layer]
    options: Mapping[str, Any] = {}
    # Whether mailboxes can be opened; a layer that delivers elsewhere overrides `stored`.
    serves = True
    # Whether mail is discarded.
    forgets = False

    def prepare(self, context: LayerContext) -> None:
        """What the hub does for your layer before a worker starts."""

    def stored(self, bench: Bench, mailbox: int) -> list[bytes]:
        """Every message that a mailbox has, as a user gets it: CR LF, no stuffed dots."""
        drop = bench.open(mailbox)
        try:
            return [unstuff(whole(drop, number)) for number in range(1, len(drop) + 1)]
        finally:
            drop.close()

    def _expect(self, bench: Bench, mailbox: int, messages: Sequence[bytes]) -> None:
        """Check that a mailbox has exactly these messages, in this order, each after its trace."""
        found = self.stored(bench, mailbox)
        wanted = [] if self.forgets else messages
        demand(len(found) == len(wanted), f"{len(found)} messages are stored, not {len(wanted)}")
        for has, message in zip(found, wanted, strict=True):
            demand(has.endswith(TRACE + message), "a message is not stored byte by byte")
            head = has[: len(has) - len(TRACE + message)]
            demand(b"\r\n\r\n" not in head, "the text in front of a message is not a header")

    # -- mail in

    def test_a_message_is_there_once_it_is_committed(self) -> None:
        with Bench(self) as bench:
            bench.put([2], HEADER + AWKWARD)
            self._expect(bench, 2, [HEADER + AWKWARD])
            self._expect(bench, 3, [])

    def test_every_recipient_gets_it(self) -> None:
        with Bench(self) as bench:
            bench.put([2, 3, 5], HEADER + b"to three\r\n")
            bench.put([3], HEADER + b"to one\r\n")
            self._expect(bench, 2, [HEADER + b"to three\r\n"])
            self._expect(bench, 3, [HEADER + b"to three\r\n", HEADER + b"to one\r\n"])
            self._expect(bench, 5, [HEADER + b"to three\r\n"])

    def test_the_cut_of_the_chunks_makes_no_difference(self) -> None:
        messages = [HEADER + AWKWARD + b"%d\r\n" % size for size in (1, 2, 3, 7)]
        with Bench(self) as bench:
            for size, message in zip((1, 2, 3, 7), messages, strict=True):
                bench.put([2], message, pieces=size)
            self._expect(bench, 2, messages)

    def test_an_empty_message_is_a_message(self) -> None:
        with Bench(self) as bench:
            bench.put([2], b"")
            self._expect(bench, 2, [b""])

    def test_a_large_message_is_taken(self) -> None:
        line = random.Random(1).randbytes(700).translate(_NO_LINE_ENDS) + b"\r\n"  # noqa: S311
        message = HEADER + line * 6000
        with Bench(self) as bench:
            bench.put([2, 3], message, pieces=256 * 1024)
            self._expect(bench, 2, [message])
            self._expect(bench, 3, [message])

    def test_an_aborted_message_is_nowhere(self) -> None:
        with Bench(self) as bench:
            incoming = bench.its_layer.begin()
            incoming.write(b"half of it\r\n")
            incoming.abort()
            bench.put([2], HEADER)
            self._expect(bench, 2, [HEADER])

    def test_many_at_once_are_all_there_in_order(self) -> None:
        messages = [HEADER + b"%d\r\n" % number for number in range(200)]
        with Bench(self) as bench:
            sent = [bench.send([2 + number % 3], one) for number, one in enumerate(messages)]
            bench.loop.run_until(lambda: all(one.calls for one in sent))
            demand(all(one.error is None for one in sent), "a message was refused")
            for mailbox in (2, 3, 4):
                self._expect(bench, mailbox, messages[mailbox - 2 :: 3])

    def test_done_is_called_once_and_on_the_loop(self) -> None:
        with Bench(self) as bench:
            sent = [bench.send([2], HEADER) for _ in range(3)]
            bench.loop.run_until(lambda: all(one.calls for one in sent))
            bench.put([2], HEADER)
            demand([one.calls for one in sent] == [1, 1, 1], "done was called more than once")
            here = threading.get_ident()
            demand(all(one.thread == here for one in sent), "done was called off the loop")

    def test_what_was_committed_is_there_after_a_restart(self) -> None:
        with Bench(self) as bench:
            bench.put([2], HEADER + AWKWARD)
            bench.restart()
            self._expect(bench, 2, [HEADER + AWKWARD])
            bench.put([2], HEADER + b"after\r\n")
            self._expect(bench, 2, [HEADER + AWKWARD, HEADER + b"after\r\n"])

    def test_ids_are_sixteen_bytes_and_rise(self) -> None:
        with Bench(self) as bench:
            ids = [bench.its_layer.next_id() for _ in range(1000)]
            demand(all(len(one) == 16 for one in ids), "an id is not sixteen bytes")
            demand(ids == sorted(set(ids)), "ids do not rise")

    def test_a_tick_costs_nothing_that_was_stored(self) -> None:
        with Bench(self) as bench:
            bench.put([2], HEADER)
            for _ in range(100):
                bench.its_layer.tick()
            self._expect(bench, 2, [HEADER])

    def test_an_unknown_setting_is_refused(self) -> None:
        try:
            self.layer.check_options({"no such setting": 1}, Path("/nowhere"))
        except ValueError:
            return
        raise AssertionError("an unknown setting was accepted")

    # -- mail out

    def test_a_layer_that_does_not_serve_says_so(self) -> None:
        if self.serves:
            return
        with Bench(self) as bench:
            try:
                bench.its_layer.open_mailbox(2)
            except RefusedError:
                return
            raise AssertionError("a mailbox was opened although the layer serves none")

    def test_sizes_are_exact(self) -> None:
        if not self.serves or self.forgets:
            return
        with Bench(self) as bench:
            for body in (b"", AWKWARD, b"x\r\n" * 999):
                bench.put([2], HEADER + body)
            drop = bench.open(2)
            sizes = [drop.size(number) for number in range(1, len(drop) + 1)]
            lengths = [len(unstuff(whole(drop, number))) for number in range(1, len(drop) + 1)]
            demand(sizes == lengths, f"sizes are {sizes}, but messages have {lengths}")
            demand(drop.octets == sum(sizes), "`octets` is not the sum of the sizes")
            drop.close()

    def test_unique_ids_are_unique_and_stay(self) -> None:
        if not self.serves or self.forgets:
            return
        with Bench(self) as bench:
            for _ in range(3):
                bench.put([2], HEADER)
            before = _uids(bench, 2)
            bench.put([2], HEADER)
            bench.restart()
            after = _uids(bench, 2)
            demand(after[:3] == before, "unique ids have changed")
            demand(len(set(after)) == 4, "unique ids are not unique")
            # RFC 1939 section 7.
            good = all(re.fullmatch(r"[!-~]{1,70}", one) for one in after)
            demand(good, "a unique id has characters that RFC 1939 does not allow")

    def test_deletions_stay(self) -> None:
        if not self.serves or self.forgets:
            return
        messages = [HEADER + b"%d\r\n" % number for number in range(5)]
        with Bench(self) as bench:
            for one in messages:
                bench.put([2, 3], one)
            drop = bench.open(2)
            bench.delete(drop, [1, 3, 4])
            drop.close()
            self._expect(bench, 2, [messages[1], messages[4]])
            bench.restart()
            self._expect(bench, 2, [messages[1], messages[4]])
            self._expect(bench, 3, messages)

    def test_a_session_without_deletions_deletes_nothing(self) -> None:
        if not self.serves or self.forgets:
            return
        with Bench(self) as bench:
            bench.put([2], HEADER)
            drop = bench.open(2)
            bench.delete(drop, [])
            drop.close()
            drop.close()
            self._expect(bench, 2, [HEADER])

    def test_a_listing_is_frozen(self) -> None:
        if not self.serves or self.forgets:
            return
        with Bench(self) as bench:
            bench.put([2], HEADER)
            drop = bench.open(2)
            bench.put([2], HEADER)
            demand(len(drop) == 1, "a listing has changed while its session was open")
            drop.close()

    def test_a_mailbox_has_one_session_at_a_time(self) -> None:
        if not self.serves or self.forgets:
            return
        with Bench(self) as bench:
            drop = bench.open(2)
            try:
                bench.its_layer.open_mailbox(2)
            except MailboxInUseError:
                bench.its_layer.open_mailbox(3).close()
            else:
                raise AssertionError("a mailbox was opened twice")
            drop.close()
            bench.its_layer.open_mailbox(2).close()


_NO_LINE_ENDS = bytes(ord("x") if octet in b"\r\n\0" else octet for octet in range(256))


def unstuff(wire: bytes) -> bytes:
    demand(wire == b".\r\n" or wire.endswith(b"\r\n.\r\n"), "a message without its final dot line")
    return re.sub(rb"(?m)^\.", b"", wire[:-3])


def whole(drop: Maildrop, number: int) -> bytes:
    """A message as RETR sends it, in whatever form the layer returns it."""
    return b"".join(map(bytes, drop.fetch(number, MESSAGE_GIVEN)))


def _uids(bench: Bench, mailbox: int) -> list[str]:
    drop = bench.open(mailbox)
    found = [drop.uid(number) for number in range(1, len(drop) + 1)]
    drop.close()
    return found


__all__ = ["AWKWARD", "HEADER", "SENDER", "TRACE", "Bench", "Conformance", "demand", "whole"]
