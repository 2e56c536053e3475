"""The collector's own logs, one per generation, made when the first survivor needs one.

Rules of this file:

* A group is durable before anything of it is entered in the index; a failed write or sync is
  never tried again on that log, and the next log of the generation says where it ends.
* The collector is the only writer of these logs and waits for everything it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from metad.errors import NoSpaceError
from metad.store.commit.committer import Append, Encoded, encode
from metad.store.index.index import Batch
from metad.store.log.writer import LogWriter
from metad.store.log_allocator import LogAllocator


class Written(NamedTuple):
    """A durable group: what to enter in the index, and where it begins in its log."""

    batch: Batch
    start: int


class SurvivorLogs:
    """Writes what stays.  `make_source` makes the source of logs of a generation."""

    def __init__(self, make_source: Callable[[int], LogAllocator]) -> None:
        self._make_source = make_source
        self._sources: dict[int, LogAllocator] = {}
        self._writers: dict[int, LogWriter] = {}
        self._broken: dict[int, LogWriter] = {}
        # Octets of deletion records by log: no garbage, though nobody's mail.
        self.kept: dict[int, int] = {}

    def write(self, generation: int, group: Sequence[Append]) -> Written:
        """Make a group durable in the log of `generation`.

        Raises OSError (then nothing of it counts, and that log is done with), and NoSpaceError.
        """
        writer = self._writer_for(generation, group)
        start = writer.end
        encoded: Encoded = encode(writer, list(group))
        try:
            writer.append([encoded.buffers], encoded.size, encoded.entries)
        except OSError:
            self._broken[generation] = self._writers.pop(generation)
            raise
        deletions = sum(item.size for item in group if item.deletion is not None)
        self.kept[writer.number] = self.kept.get(writer.number, 0) + deletions
        batch = Batch(writer.number, writer.life, writer.end, encoded.messages, [])
        return Written(batch, start)

    def _writer_for(self, generation: int, group: Sequence[Append]) -> LogWriter:
        writer = self._writers.get(generation)
        if writer is not None and _fits(writer, group):
            return writer
        source = self._source(generation)
        if writer is not None:
            source.stop(self._writers.pop(generation))
        writer = source.take(self._broken.get(generation))
        # Only now: had the new log not been able to speak of it, the next one would have to.
        self._broken.pop(generation, None)
        self._writers[generation] = writer
        self.kept.pop(writer.number, None)
        if not _fits(writer, group):
            raise NoSpaceError("a survivor larger than a log")
        return writer

    def _source(self, generation: int) -> LogAllocator:
        source = self._sources.get(generation)
        if source is None:
            source = self._sources[generation] = self._make_source(generation)
        return source

    def seal(self) -> None:
        """Seal every open log, so that it is an ordinary one."""
        for generation, writer in list(self._writers.items()):
            del self._writers[generation]
            self._source(generation).stop(writer)


def _fits(writer: LogWriter, group: Sequence[Append]) -> bool:
    size = sum(item.size for item in group)
    entries = sum(item.entries_size for item in group)
    return not writer.poisoned and writer.fits(size, entries)
