"""Messages that lie here, sent to other members: piece by piece (cluster.fetching), or several
small ones at once (cluster.small_texts).

Rules of this file:

* A record is verified before its first piece is sent.
* A large message stays open between its pieces.  If it was closed meanwhile, it is opened and
  verified again, and read up to where the asker is.
* Open ones are few and count in the memory budget.  A link that ends closes its own.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import partial

import lmdb
from xxhash import xxh3_128

from metad.cluster.answers import INTERNAL, Refused
from metad.cluster.fetching import FETCHED, Ask, pack_piece, unpack_ask
from metad.cluster.serving import Asker, Reply
from metad.cluster.small_texts import TEXTS_SIZE, pack_texts
from metad.cluster.small_texts import unpack_ask as unpack_texts_ask
from metad.errors import RefusedError
from metad.layers.logs import LogLayer, LogMaildrop
from metad.layers.merged_mailbox import MergedListing
from metad.store.background import Background
from metad.system.osio import Buffer

MOST_OPEN = 16
# What an open message may have read ahead, and its descriptor.
OPEN_MEMORY = 2 * FETCHED
IDLE_NS = 10_000_000_000

Key = tuple[Asker, int, bytes]


class _Text:
    """A message as RETR sends it, read from the start to the end.  `at`: bytes that were read."""

    def __init__(self, pieces: Iterator[Buffer]) -> None:
        self._pieces = pieces
        self._held: list[bytes] = []
        self._size = 0
        self._ended = False
        self._digest = xxh3_128()
        self.at = 0
        self.used_ns = 0

    def open(self) -> None:
        """Read the first piece: only a message that verifies has one."""
        self._fill(1)

    def _fill(self, size: int) -> None:
        while self._size < size and not self._ended:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
            else:
                self._held.append(bytes(piece))
                self._size += len(piece)

    def read(self, most: int) -> tuple[bytes, bool]:
        """The next bytes, and whether they are the last."""
        self._fill(most + 1)
        whole = b"".join(self._held)
        data, rest = whole[:most], whole[most:]
        self._held, self._size = [rest], len(rest)
        self._digest.update(data)
        self.at += len(data)
        return data, self._ended and not rest

    def skip_to(self, at: int) -> None:
        while self.at < at:
            data, _ = self.read(min(FETCHED, at - self.at))
            if not data:
                raise RefusedError("the message is shorter")

    @property
    def digest(self) -> bytes:
        return self._digest.digest()

    def close(self) -> None:
        if isinstance(self._pieces, Generator):
            self._pieces.close()


class ServedBodies:
    """Those that one worker sends."""

    def __init__(self, log: LogLayer, thread: Background) -> None:
        """`thread` reads what is not in memory."""
        self._log = log
        self._thread = thread
        self._open: dict[Key, _Text] = {}

    def fetch(self, body: bytes, reply: Reply) -> None:
        """Answer FETCH.  Raises ClusterError, RefusedError."""
        ask = unpack_ask(body)
        key = reply.link, ask.mailbox, ask.id
        text = self._open.pop(key, None)
        if text is not None:
            self._log.budget.give_back(OPEN_MEMORY)
            if text.at != ask.at:
                text.close()
                text = None
        if text is None:
            size = self._log.reader.size(ask.id)
            entry = ask.id + min(size, 0xFFFFFFFF).to_bytes(4, "big")
            found = LogMaildrop(self._log, ask.mailbox, MergedListing(entry, size)).fetch(
                1, FETCHED
            )
            text = _Text(iter(found))
            if isinstance(found, Sequence):
                self._answer(reply, text, self._read(text, ask))
                return
        self._thread.put(partial(self._read_in_thread, reply, text, ask))

    def texts(self, body: bytes, reply: Reply) -> None:
        """Answer TEXTS.  Raises ClusterError, RefusedError."""
        mailbox, ids = unpack_texts_ask(body)
        try:
            places = self._log.reader.look_ahead(ids)
        except lmdb.Error as error:
            raise RefusedError(f"index: {error}") from error
        sizes = [TEXTS_SIZE + 1 if place is None else place.size for place in places]
        entries = [one + size.to_bytes(4, "big") for one, size in zip(ids, sizes, strict=True)]
        drop = LogMaildrop(self._log, mailbox, MergedListing(b"".join(entries), sum(sizes)))
        found = [
            _small(drop, number) if size <= TEXTS_SIZE else None
            for number, size in enumerate(sizes, 1)
        ]
        if any(isinstance(one, Iterator) for one in found):
            self._thread.put(partial(self._texts_in_thread, reply, found))
        else:
            reply(pack_texts([None if one is None else b"".join(one) for one in found]))

    def _texts_in_thread(
        self, reply: Reply, found: list[Sequence[Buffer] | Iterator[Buffer] | None]
    ) -> None:
        answer: Sequence[Buffer] | Refused = INTERNAL
        try:
            answer = pack_texts([None if one is None else _joined(one) for one in found])
        finally:  # the asker waits, whatever happens here
            self._log.loop.call_soon_threadsafe(reply, answer)

    def _read_in_thread(self, reply: Reply, text: _Text, ask: Ask) -> None:
        answer: list[Buffer] | Refused = INTERNAL
        try:
            answer = self._read(text, ask)
        finally:  # as above
            key = ask.mailbox, ask.id
            self._log.loop.call_soon_threadsafe(self._answer, reply, text, answer, key)

    def _read(self, text: _Text, ask: Ask) -> list[Buffer] | Refused:
        try:
            text.skip_to(ask.at)
            if not ask.most:
                text.open()
                return pack_piece(last=False, digest=bytes(16), data=b"")
            data, last = text.read(ask.most)
            return pack_piece(last=last, digest=text.digest, data=data)
        except (RefusedError, OSError, lmdb.Error) as error:
            return Refused(str(error))

    def _answer(
        self,
        reply: Reply,
        text: _Text,
        answer: list[Buffer] | Refused,
        key: tuple[int, bytes] | None = None,
    ) -> None:
        """`key`: the message may be kept open under it."""
        goes_on = not isinstance(answer, Refused) and answer[1] and not answer[0][0]
        if key is None or not goes_on or not self._keep((reply.link, *key), text):
            text.close()
        reply(answer)

    def _keep(self, key: Key, text: _Text) -> bool:
        if key in self._open or not self._log.budget.take(OPEN_MEMORY):
            return False
        if len(self._open) >= MOST_OPEN:
            self._close(next(iter(self._open)))
        text.used_ns = self._log.osio.monotonic_ns()
        self._open[key] = text
        return True

    def _close(self, key: Key) -> None:
        self._open.pop(key).close()
        self._log.budget.give_back(OPEN_MEMORY)

    def tick(self) -> None:
        """Close what was left."""
        before = self._log.osio.monotonic_ns() - IDLE_NS
        for key in [one for one, text in self._open.items() if text.used_ns < before]:
            self._close(key)

    def link_ended(self, link: Asker) -> None:
        for key in [one for one in self._open if one[0] is link]:
            self._close(key)

    def stop(self) -> None:
        for key in list(self._open):
            self._close(key)


def _small(drop: LogMaildrop, number: int) -> Sequence[Buffer] | Iterator[Buffer] | None:
    """A message; None if it cannot be read: FETCH gets the reason."""
    try:
        return drop.fetch(number, TEXTS_SIZE)
    except (RefusedError, OSError, lmdb.Error):
        return None


def _joined(pieces: Sequence[Buffer] | Iterator[Buffer]) -> bytes | None:
    try:
        return b"".join(pieces)
    except (RefusedError, OSError, lmdb.Error):
        return None
