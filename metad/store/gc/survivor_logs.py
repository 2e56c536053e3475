"""The collector's own logs, one per generation, made when the first survivor needs one.

Rules of this file:

* A group is durable before anything of it is entered in the index; a failed write or sync is
  never tried again on that log, and the next log of the generation says where it ends.
* The collector is the only writer of these logs and waits for everything it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from metad.store.index.index import Batch
from metad.store.log.encode import Append, encode
from metad.store.log_allocator import LogAllocator
from metad.store.log_chain import LogChain


class Written(NamedTuple):
    """A durable group: what to enter in the index, and where it begins in its log."""

    batch: Batch
    start: int


class SurvivorLogs:
    """Writes what stays.  `make_source` makes the source of logs of a generation."""

    def __init__(self, make_source: Callable[[int], LogAllocator]) -> None:
        self._make_source = make_source
        self._chains: dict[int, LogChain] = {}
        # Octets of deletion records by log: no garbage, though nobody's mail.
        self.kept: dict[int, int] = {}

    def write(self, generation: int, group: Sequence[Append]) -> Written:
        """Make a group durable in the log of `generation`.

        Raises OSError (then nothing of it counts, and that log is done with), and NoSpaceError.
        """
        chain = self._chain(generation)
        before = chain.writer
        writer = chain.writer_for(group)
        if writer is not before:
            self.kept.pop(writer.number, None)
        start = writer.end
        encoded = encode(writer, group)
        chain.append(writer, group, encoded)
        deletions = sum(item.size for item in group if item.deletion is not None)
        self.kept[writer.number] = self.kept.get(writer.number, 0) + deletions
        batch = Batch(writer.number, writer.life, writer.end, encoded.messages, [])
        return Written(batch, start)

    def _chain(self, generation: int) -> LogChain:
        chain = self._chains.get(generation)
        if chain is None:
            chain = self._chains[generation] = LogChain(self._make_source(generation))
        return chain

    def seal(self) -> None:
        """Seal every open log, so that it is an ordinary one."""
        for chain in self._chains.values():
            chain.retire()
