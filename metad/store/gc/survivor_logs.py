"""The collector's own logs, one per generation, made for the first survivor.

Rules of this file:

* A group is durable before any of it is entered in the index.  A failed write or sync is never
  retried on that log, and the next log of the generation records at once where it ends.
* While the index lacks a group of a log, the log is not sealed and nothing more is written: a later
  watermark would move past the missing records.
* The collector is the only writer of these logs, and everything it does is synchronous.
* Before a log is freed, every copy is in a sealed log or is followed by a confirmation.  So a
  recovery that finds a last group without one knows that all originals still exist, whether the
  group failed or its writer was killed, and whatever else is readable.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from metad.errors import NoSpaceError, RefusedError
from metad.store.index.rows import Batch
from metad.store.log import record
from metad.store.log.encode import Append, append_confirmation, encode
from metad.store.log.writer import LogWriter
from metad.store.log_allocator import LogAllocator
from metad.store.log_chain import LogChain

ROWS = 200  # per write transaction: below a millisecond
_ID = 16
Enter = Callable[..., None]


class Written(NamedTuple):
    """A durable group: the records to enter in the index, and where it begins in its log."""

    batch: Batch
    start: int

    def parts(self) -> list[Batch]:
        """Split the group into transactions; the last one moves the watermark to the group's
        end."""
        parts = [
            self.batch._replace(watermark=self.start, messages=[], deletions=list(some))
            for some in _bounded(self.batch.deletions)
        ]
        messages = self.batch.messages
        parts += [
            self.batch._replace(
                watermark=self.start, messages=messages[at : at + ROWS], deletions=[]
            )
            for at in range(0, len(messages), ROWS)
        ]
        parts[-1] = parts[-1]._replace(watermark=self.batch.watermark)
        return parts


def _bounded(deletions: Sequence[record.Deletion]) -> Iterator[list[record.Deletion]]:
    """Deletions, split and grouped so that no group has more than ROWS ids."""
    group: list[record.Deletion] = []
    rows = 0
    for deletion in deletions:
        for at in range(0, len(deletion.ids), ROWS * _ID):
            some = deletion._replace(ids=deletion.ids[at : at + ROWS * _ID])
            count = len(some.ids) // _ID
            if group and rows + count > ROWS:
                yield group
                group, rows = [], 0
            group.append(some)
            rows += count
    if group:
        yield group


class SurvivorLogs:
    """Writes survivors.  `make_source` makes the source of logs for a generation."""

    def __init__(self, make_source: Callable[[int], LogAllocator]) -> None:
        self._make_source = make_source
        self._chains: dict[int, LogChain] = {}
        # Durable groups that are not yet in the index, in order.
        self.behind: list[tuple[Enter, Batch]] = []
        # Octets of deletion records by log: neither garbage nor a mailbox's mail.
        self.kept: dict[int, int] = {}
        self._unconfirmed: set[int] = set()  # lives with a group after the last confirmation

    def write(self, generation: int, group: Sequence[Append]) -> Written:
        """Make a group durable in the log of `generation`.

        Raises OSError (then none of it counts, and the log is not used again), and NoSpaceError.
        """
        chain = self._chain(generation)
        before = chain.writer
        writer = _writer_for(chain, group)
        if writer is not before:
            self.kept.pop(writer.number, None)
            self._must_be_sealed(before)
        self._unconfirmed.add(writer.life)
        return self._append(chain, writer, group)

    def _append(self, chain: LogChain, writer: LogWriter, group: Sequence[Append]) -> Written:
        start = writer.end
        encoded = encode(writer, group)
        try:
            chain.append(writer, group, encoded)
        except OSError:
            with suppress(RefusedError):  # then `settle` retries
                chain.record_end()
            raise
        deletions = sum(item.size for item in group if item.deletion is not None)
        self.kept[writer.number] = self.kept.get(writer.number, 0) + deletions
        batch = Batch(writer.number, writer.life, writer.end, encoded.messages, encoded.deletions)
        return Written(batch, start)

    def confirm(self) -> Iterator[Batch]:
        """Have every log in use record durably that all copies in it are synced.  Returns the new
        watermarks.

        A log without room for that is sealed.  Raises OSError, NoSpaceError, TableBusyError.
        """
        for chain in self._chains.values():
            writer = chain.writer
            if writer is None or writer.life not in self._unconfirmed:
                continue
            group = [append_confirmation()]
            if chain.fits(group):
                written = self._append(chain, writer, group)
                self._unconfirmed.discard(writer.life)
                yield written.batch._replace(deletions=[])
            else:
                chain.retire()
                self._must_be_sealed(writer)

    def is_in_use(self, number: int) -> bool:
        """Whether copies in that log will be followed by a confirmation."""
        writers = (chain.writer for chain in self._chains.values())
        return any(writer is not None and writer.number == number for writer in writers)

    def _must_be_sealed(self, writer: LogWriter | None) -> None:
        """Raises OSError if a log with unconfirmed copies was given up."""
        if writer is None or writer.life not in self._unconfirmed:
            return
        self._unconfirmed.discard(writer.life)
        if not writer.sealed:
            raise OSError(errno.EIO, f"log {writer.number} of survivors is not sealed")

    def settle(self) -> None:
        """Have another log record where each failed one ends.  Raises RefusedError."""
        for chain in self._chains.values():
            if not _is_settled(chain):
                chain.record_end()

    def _chain(self, generation: int) -> LogChain:
        chain = self._chains.get(generation)
        if chain is None:
            chain = self._chains[generation] = LogChain(self._make_source(generation))
        return chain

    def seal(self) -> bool:
        """Seal every open log, so that it becomes an ordinary one.  False: some need a recovery,
        because the index lacks some of their records, or no log records where one ends."""
        missing = {batch.log for _, batch in self.behind}
        for chain in self._chains.values():
            if chain.writer is not None and chain.writer.number not in missing:
                chain.retire()
        return not missing and all(map(_is_settled, self._chains.values()))


def _writer_for(chain: LogChain, group: Sequence[Append]) -> LogWriter:
    """The log for a group.  A free log has its blocks: if the disk has none for the log in use,
    writing continues in a free one.  Raises NoSpaceError, TableBusyError."""
    try:
        return chain.writer_for(group)
    except NoSpaceError:
        if chain.writer is None or not chain.has_free_log:
            raise
        chain.retire()
        return chain.writer_for(group)


def _is_settled(chain: LogChain) -> bool:
    return chain.failed is None or chain.failed.predecessor_recorded
