"""This node's own marks on its disk, and whether it knows itself to be an old copy.

    DATA/cluster/told      starts, beat and runs (metad.cluster.marks)
    DATA/logs/told         the same, so that neither directory is exchanged alone
    DATA/cluster/refused   why this node no longer takes part, once it has learned that

Rules of this file:

* DATA/logs/told is durable first, then DATA/cluster/told, then the beat is told.  So the first is
  at most one beat ahead, whenever the node is killed or loses its power.
* If one of the two cannot be read, the other is believed: a bad sector is no old disk.
* The first process of a hub begins the run; a cell tells the others.
* Only the process whose run is the newest on this disk believes that the disk is old.  One that is
  left over from the run before does not know better.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from metad.cluster import marks
from metad.cluster.marks import Heard, Told
from metad.cluster.reserve import Reserve
from metad.errors import ClusterError
from metad.system.osio import Osio, locked, read_file

TOLD, REFUSED = "told", "refused"
REMEDY = "empty it and join again"
_BEAT, IS_REFUSED = range(2)


class OwnMarks:
    """As one process sees them.  `cells`: the beat, and 1 if this node is refused."""

    def __init__(
        self,
        osio: Osio,
        cluster: Path,
        logs: str,
        cells: memoryview,
        report: Callable[[str], None],
    ) -> None:
        self._osio = osio
        self._report = report
        self._reserve = Reserve(osio, str(cluster))
        self._told_path = str(cluster / TOLD)
        self._refused_path = str(cluster / REFUSED)
        self._beside_path = os.path.join(logs, TOLD)
        self._cells = cells
        self._refusal = ""
        self._told: Told

    def begin(self, token: bytes) -> str:
        """Begin a run of the hub, or join the one that its first process began.

        Returns why this node cannot take part; "" if it can.  Raises ClusterError, OSError.
        """
        with locked(self._osio, self._told_path):
            if self._cells[_BEAT]:
                told = self._read(self._told_path)
                if told is None:
                    raise ClusterError(f"{self._told_path} is missing")
            else:
                told = self._judged()
                told = told.begun(token) if told is not None else marks.first(token)
                self._write(told)
            self._told = told
        return self.refusal

    @property
    def token(self) -> bytes:
        return self._told.runs[0].token

    def told(self) -> Told:
        return self._told._replace(beat=int(self._cells[_BEAT]))

    def beat(self) -> None:
        """All that is durable now is older than the next beat.  Raises ClusterError, OSError."""
        with locked(self._osio, self._told_path):
            if self._is_newest():
                self._write(self._told._replace(beat=int(self._cells[_BEAT]) + 1))

    # -- an old disk

    @property
    def refusal(self) -> str:
        """Why this node no longer takes part; "" if it does."""
        if not self._cells[IS_REFUSED]:
            return ""
        if not self._refusal:
            try:
                self._refusal = read_file(self._osio, self._refused_path).decode("utf-8", "replace")
            except OSError:
                return f"this node is refused; {REMEDY}"
        return self._refusal

    def is_behind(self, heard: Heard) -> bool:
        """Whether another member has heard of a later state of this node.  Raises ClusterError,
        OSError."""
        return marks.is_behind(self.told(), heard) and self._is_newest()

    def refuse(self, reason: str) -> None:
        """Take part no more, from now on and after each start.  Raises OSError: only till then."""
        self._refusal = reason
        self._cells[IS_REFUSED] = 1
        self._reserve.replace(self._refused_path, reason.encode())

    def look(self) -> None:
        """The operator may have let this node go on all the same."""
        if self._cells[IS_REFUSED] and not self._is_there(self._refused_path):
            self._refusal = ""
            self._cells[IS_REFUSED] = 0

    # -- files

    def _judged(self) -> Told | None:
        """What was told last, None if nothing was.  Refuses this node if DATA/logs and
        DATA/cluster are not of one time."""
        if self._is_there(self._refused_path):
            self._cells[IS_REFUSED] = 1
        try:
            told = self._read(self._told_path)
        except (ClusterError, OSError) as error:
            self._report(f"warning: {error}; {self._beside_path} is used")
            return self._read(self._beside_path)
        try:
            beside = self._read(self._beside_path)
        except (ClusterError, OSError) as error:
            self._report(f"warning: {error}; it is written again")
            return told
        if told is None or self._cells[IS_REFUSED]:
            return told or beside
        if beside is None or beside.beat < told.beat:
            self.refuse(f"this node's logs are older than it told other nodes; {REMEDY}")
        elif beside.beat > told.beat + 1:
            self.refuse(f"this node's view is older than its logs; {REMEDY}")
        return told

    def _is_newest(self) -> bool:
        told = self._read(self._told_path)
        return told is not None and told.runs[0].token == self.token

    def _read(self, path: str) -> Told | None:
        """None: there is none.  Raises ClusterError if it is damaged, and OSError."""
        try:
            return marks.unpack_told(read_file(self._osio, path))
        except FileNotFoundError:
            return None
        except ClusterError:
            raise ClusterError(f"{path}: damaged") from None

    def _write(self, told: Told) -> None:
        self._reserve.replace(self._beside_path, told.pack())
        self._reserve.replace(self._told_path, told.pack())
        self._cells[_BEAT] = told.beat

    def _is_there(self, path: str) -> bool:
        try:
            self._osio.stat(path)
        except FileNotFoundError:
            return False
        return True
