"""The marks by which an old copy of a node's disk is noticed, and a node that runs twice.

Each start of a hub is a run with a random token.  A node keeps its last runs, and counts beats: one
at each start, and one every few seconds in which it wrote something.  Both are durable before they
are told (`own_marks`).  The others remember what they heard last (`heard_marks`).

    remembered      the node tells                                          it is
    token, beat 7   that token as this run's                                the same run
    token, beat 7   that token, and that the next run began at beat 7       later, on that disk
    token, beat 7   that token, and that the next run began at beat 5       a copy taken before 7
    token, beat 7   other tokens alone                                      an older copy, or it
                                                                            runs twice

Why these are enough.  A start that was told is in every later state of the disk.  A copy of before
that start lacks its token, whatever it goes through afterwards: counters alone could catch up.  A
copy from within the run has a smaller beat than was told.  And all that was durable when a beat was
counted is on every disk that has the beat: the beat lies beside the logs, too.

Why ends of logs and vectors of tombstones are not compared.  A rebuilt index has another vector,
recovery ends a log before its last group, and the collector frees logs: all three go back on a good
disk.  Beats never do.

What is left: a copy taken within the last seconds before the end of a run, after the last beat
that was told.  Such a node lacks at most what it confirmed in those seconds.  Every start of a
node lets the others walk again, and they send it that.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from metad.errors import ClusterError

TOKEN_SIZE = 8
MOST_RUNS = 24
# A HELLO may be on its way while a beat is told on another link.
BEATS_LATE = 2
_COUNTS = struct.Struct(">QQ")
_RUN = struct.Struct(">8sQ")
_HEARD = struct.Struct(">8sQQ")


class Run(NamedTuple):
    """One start of a hub, and the beat after which it began."""

    token: bytes
    since: int


class Heard(NamedTuple):
    """What a node told last: the token of its run, its starts so far, its beat."""

    token: bytes
    starts: int
    beat: int

    def pack(self) -> bytes:
        return _HEARD.pack(*self)

    def is_newer(self, other: Heard) -> bool:
        return (self.starts, self.beat) > (other.starts, other.beat)


class Told(NamedTuple):
    """What a node tells: starts and beats so far, its last runs, the present one first."""

    starts: int
    beat: int
    runs: tuple[Run, ...]

    def pack(self) -> bytes:
        return _COUNTS.pack(self.starts, self.beat) + b"".join(_RUN.pack(*run) for run in self.runs)

    @property
    def last(self) -> Heard:
        return Heard(self.runs[0].token, self.starts, self.beat)

    def begun(self, token: bytes) -> Told:
        """The next start."""
        runs = (Run(token, self.beat), *self.runs)
        return Told(self.starts + 1, self.beat + 1, runs[:MOST_RUNS])


def first(token: bytes) -> Told:
    return Told(1, 1, (Run(token, 0),))


def unpack_told(data: bytes) -> Told:
    """Raises ClusterError."""
    rest = data[_COUNTS.size :]
    if not rest or len(rest) % _RUN.size or len(rest) > MOST_RUNS * _RUN.size:
        raise ClusterError("marks cannot be read")
    starts, beat = _COUNTS.unpack_from(data)
    return Told(starts, beat, tuple(Run(*one) for one in _RUN.iter_unpack(rest)))


def unpack_heard(data: bytes) -> Heard:
    """Raises ClusterError."""
    if len(data) != _HEARD.size:
        raise ClusterError("marks cannot be read")
    return Heard(*_HEARD.unpack(data))


def is_behind(told: Told, heard: Heard) -> bool:
    """Whether a node that tells this is not a later state of the one that was heard."""
    after = told.beat + BEATS_LATE  # of the run that follows the one that was heard
    for run in told.runs:
        if run.token == heard.token:
            return after < heard.beat
        after = run.since
    # So many starts that no member heard of: the run is no longer kept, and only counts are left.
    return told.starts - heard.starts < MOST_RUNS
