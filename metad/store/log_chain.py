"""The logs of one writer, one after another, and the only procedure after a failed write or sync.

The committer, the collector's survivor logs and expiry all write through a chain:

    writer = chain.writer_for(group)          the log in use, or the next one
    encoded = encode(writer, group)
    chain.append(writer, group, encoded)      durable, or OSError: then that log has ended
    chain.record_end()                        after an OSError, before any client is told

Rules of this file:

* A log whose write or sync failed is never written to again, and never sealed by its writer. The
  chain keeps it as `failed` until the header of another log durably records where it ends. Until
  then the failure must have no consequences: no client is refused, no deletion record is dropped,
  no log is freed (check `failed is None`).
* `record_end` and `writer_for` both ensure this, whichever is called first.  If no log is
  available, a log of a few blocks records it.
* A failure after the log (an index that refuses the group) is not a failure of the log: the group
  is durable.  `commit.index_feed.IndexFeed` keeps what the index lacks; `retire` gives up the log
  in use when its writer wants to continue in another.
* One thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from metad.errors import MetadError, NoSpaceError
from metad.store.log.encode import Append, Encoded, sizes, write_parts
from metad.store.log.writer import LogWriter
from metad.store.log_allocator import LogAllocator

# Blocks that a log gets in addition to those for a group without blocks.
RESERVE = 1 << 20
# Blocks that mail leaves for some ten thousand deletions, which make room on a full disk.
FOR_DELETIONS = 512 << 10


class LogChain:
    """The log in use (`writer`), and the one that failed before it (`failed`)."""

    def __init__(self, allocator: LogAllocator, for_deletions: int = 0) -> None:
        """`for_deletions`: bytes of blocks that mail leaves for them."""
        self._allocator = allocator
        self._for_deletions = for_deletions
        self.report = allocator.report
        self.writer: LogWriter | None = None
        self.failed: LogWriter | None = None

    @property
    def has_space(self) -> bool:
        return self._allocator.has_space

    def open(self) -> int:
        """Take the first log, if the disk has one.  Returns its life, or a life without a log.

        A full disk must not keep users from reading; each group retries.  Raises TableBusyError.
        """
        try:
            return self._next().life
        except NoSpaceError:
            return self._allocator.next_life()

    @property
    def has_free_log(self) -> bool:
        """Whether the next log is an existing free one, not a new file."""
        return self._allocator.has_free_log

    def fits(self, group: Sequence[Append]) -> bool:
        """Whether the group fits in the log in use without another block of the disk."""
        writer = self.writer
        if writer is None or writer.poisoned:
            return False
        return writer.takes(*sizes(group), self._left_by(group))

    def is_full(self, group: Sequence[Append]) -> bool:
        """Whether the log in use is intact and too full for the group."""
        writer = self.writer
        return writer is not None and not writer.poisoned and not writer.fits(*sizes(group))

    def writer_for(self, group: Sequence[Append]) -> LogWriter:
        """The log in use if the group fits, otherwise the next one.

        Raises NoSpaceError (also for a group that is larger than a log, and if the disk has no
        blocks for it: the log goes on), TableBusyError.
        """
        size, entries_size = sizes(group)
        writer = self.writer
        if writer is None or writer.poisoned or not writer.fits(size, entries_size):
            writer = self._replace(writer)
        if not writer.fits(size, entries_size):
            raise NoSpaceError("a message larger than a log")
        left = self._left_by(group)
        if not writer.takes(size, entries_size, left):
            _reserve(writer, size, entries_size, left)
        return writer

    def _replace(self, full: LogWriter | None) -> LogWriter:
        """The next log.  Without one, a full log stays in use: deletions, which make room, still
        fit into it.  The collector seals first: it never has two logs open in one generation.

        Raises NoSpaceError, TableBusyError.
        """
        if full is None or full.poisoned or not self._allocator.seals_later:
            self.retire()
            return self._next()
        writer = self._next()
        self._allocator.retire(full)
        return writer

    def _left_by(self, group: Sequence[Append]) -> int:
        """Bytes of blocks that a group must leave free after it: none if it has only deletions."""
        return 0 if all(item.deletion is not None for item in group) else self._for_deletions

    def append(self, writer: LogWriter, group: Sequence[Append], encoded: Encoded) -> None:
        """Make an encoded group durable.  Raises OSError; then the log has ended before it.

        So it has if a bug raises something else.
        """
        try:
            writer.append(write_parts(encoded.buffers, group), encoded.size, encoded.entries)
        except BaseException:
            self._end(writer)
            raise

    def record_end(self) -> None:
        """Have another log record where the failed one ends.

        Raises RefusedError: no log records it yet; the next call tries again.
        """
        if self.failed is not None:
            self._next()

    def retire(self) -> None:
        """Give up the log in use: it is sealed soon, and the next group goes to another log."""
        writer, self.writer = self.writer, None
        if writer is None:
            return
        if writer.poisoned:  # by the sync of the zeros ahead
            self._end(writer)
        else:
            self._allocator.retire(writer)

    def close(self) -> LogWriter | None:
        """Give up the log in use without sealing it: the caller does, by `LogAllocator.stop`."""
        writer, self.writer = self.writer, None
        return writer

    def _end(self, writer: LogWriter) -> None:
        writer.poisoned = True
        self.failed, self.writer = writer, None

    def _next(self) -> LogWriter:
        """Another log, whose header records where the failed one ends."""
        failed = self.failed
        try:
            writer = self._allocator.take(after_failure=failed is not None)
        except NoSpaceError:
            self._record_in_small_log()
            raise
        if failed is not None and not failed.predecessor_recorded:
            self._record_in(writer, failed)
        self.failed = None
        self.writer = writer
        return writer

    def _record_in(self, writer: LogWriter, failed: LogWriter) -> None:
        try:
            writer.state_predecessor(failed)
        except OSError as error:
            writer.close()  # it is empty; the next recovery frees it
            self._record_in_small_log()
            raise NoSpaceError(f"no log is available: {error}") from error
        failed.predecessor_recorded = True

    def _record_in_small_log(self) -> None:
        """Without space for a whole log, one of a few blocks records the end."""
        failed = self.failed
        if failed is None or failed.predecessor_recorded:
            return
        try:
            self._allocator.record_end(failed)
        except (OSError, MetadError) as error:
            self.report(f"warning: no log records yet where log {failed.number} ends: {error}")


def _reserve(writer: LogWriter, size: int, entries_size: int, left: int) -> None:
    """Allocate blocks for a group, for `left` bytes after it, and for more if the disk has them.

    Raises NoSpaceError.
    """
    try:
        writer.reserve(size, entries_size, RESERVE)
    except OSError:
        try:
            writer.reserve(size, entries_size, left)
        except OSError as error:
            raise NoSpaceError(f"no blocks for log {writer.number}: {error}") from error
