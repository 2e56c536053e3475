"""What the other members told of themselves, kept durably: DATA/cluster/heard.

    member -> the marks that it told last, and its vector of tombstones

Rules of this file:

* The first mark of a run is durable before that run is accepted as a member.  So of two nodes with
  one disk the one that is heard first is the member, and the other is refused.
* What was told later in a run is durable within some seconds.  A node that forgets it in a crash
  walks at its start, and sends what the others lack.
* A file that is damaged counts as none, and is written again: this node has then forgotten what
  others told, which costs no mail while their disks are not old.
* Nothing goes back but the vector: a run that begins may be rebuilt, and tells all of it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import msgpack

from metad.cluster import marks
from metad.cluster.marks import Heard, Told
from metad.cluster.reserve import Reserve
from metad.errors import ClusterError
from metad.system.osio import Osio, locked, read_file

HEARD = "heard"
Vector = Mapping[tuple[int, int], int]


class Member(NamedTuple):
    """What one member told."""

    mark: Heard
    vector: Vector = {}  # noqa: RUF012 - never changed


class HeardMarks:
    """The file, as one process uses it."""

    def __init__(self, osio: Osio, path: str, report: Callable[[str], None]) -> None:
        self._osio = osio
        self._report = report
        self._path = path
        self._reserve = Reserve(osio, os.path.dirname(path))
        self._kept: dict[int, Member] = {}  # what this process stored last

    def mark(self, member: int) -> Heard | None:
        """Raises ClusterError, OSError."""
        found = self._read().get(member)
        return found.mark if found is not None else None

    def all(self) -> dict[int, Member]:
        """Raises ClusterError, OSError."""
        return self._read()

    def accept(self, member: int, told: Told) -> bool:
        """Whether a node that tells this may be that member.  If it has begun a run, that is
        durable now.  Raises ClusterError, OSError."""
        with locked(self._osio, self._path):
            found = self._read()
            known = found.get(member)
            if known is not None and marks.is_behind(told, known.mark):
                return False
            if known is None or known.mark.token != told.last.token:
                self._write(found | {member: Member(told.last)})
        return True

    def keep(self, heard: Mapping[int, Member], members: Collection[int]) -> None:
        """Store what members told; those that are none any more are dropped.

        Raises ClusterError, OSError.
        """
        if heard == self._kept:
            return
        with locked(self._osio, self._path):
            found = self._read()
            newer = {
                number: one
                for number, one in heard.items()
                if number not in found or not found[number].mark.is_newer(one.mark)
            }
            both = {number: one for number, one in (found | newer).items() if number in members}
            if both != found:
                self._write(both)
        self._kept = dict(heard)

    def _read(self) -> dict[int, Member]:
        try:
            data = read_file(self._osio, self._path)
        except FileNotFoundError:
            return {}
        try:
            rows: Any = msgpack.unpackb(data, strict_map_key=False, use_list=False)
            return {int(number): _unpack(*row) for number, row in rows.items()}
        except (ClusterError, ValueError, TypeError, AttributeError, msgpack.UnpackException):
            self._report(f"warning: {self._path}: damaged; it is written again")
            return {}

    def _write(self, members: Mapping[int, Member]) -> None:
        rows = {
            number: (one.mark.pack(), [(*origin, last) for origin, last in one.vector.items()])
            for number, one in members.items()
        }
        self._reserve.replace(self._path, msgpack.packb(rows))


def _unpack(mark: bytes, rows: Any) -> Member:
    vector = {(int(number), int(life)): int(last) for number, life, last in rows}
    return Member(marks.unpack_heard(mark), vector)
