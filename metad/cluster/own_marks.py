"""This node's own marks on its disk, and whether it knows itself to be an old copy.

    DATA/cluster/told      starts, beat and runs (metad.cluster.marks)
    DATA/logs/told         token and beat once more, so that neither directory is exchanged alone
    DATA/cluster/refused   why this node takes part no more, once it has learned that

Rules of this file:

* DATA/logs/told is durable first, then DATA/cluster/told, then the beat is told.  So the first is
  at most one beat ahead, whenever the node is killed or loses its power.
* The first process of a hub begins the run; a cell tells the others.
* Only the process whose run is the newest on this disk believes that the disk is old.  One that is
  left over from the run before does not know better.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metad.cluster import marks
from metad.cluster.marks import Heard, Told
from metad.errors import ClusterError
from metad.system.osio import Osio, read_file, write_file

TOLD, REFUSED = "told", "refused"
REMEDY = "empty it and join again"
_BESIDE = struct.Struct(">8sQ")
_BEAT, _REFUSED = range(2)


class OwnMarks:
    """As one process sees them.  `cells`: the beat, and 1 if this node is refused."""

    def __init__(self, osio: Osio, cluster: Path, logs: str, cells: memoryview) -> None:
        self._osio = osio
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
        with self._locked():
            told = self._read()
            if self._cells[_BEAT]:
                if told is None:
                    raise ClusterError(f"{self._told_path} is missing")
            else:
                self._judge_parts(told)
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
        with self._locked():
            if self._is_newest():
                self._write(self._told._replace(beat=int(self._cells[_BEAT]) + 1))

    # -- an old disk

    @property
    def refusal(self) -> str:
        """Why this node takes part no more; "" if it does."""
        if not self._cells[_REFUSED]:
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
        self._cells[_REFUSED] = 1
        write_file(self._osio, self._refused_path, reason.encode())

    def look(self) -> None:
        """The operator may have let this node go on all the same."""
        if self._cells[_REFUSED] and not self._is_there(self._refused_path):
            self._refusal = ""
            self._cells[_REFUSED] = 0

    # -- files

    def _judge_parts(self, told: Told | None) -> None:
        """Whether DATA/logs and DATA/cluster are of one time."""
        if self._is_there(self._refused_path):
            self._cells[_REFUSED] = 1
            return
        if told is None:
            return
        beat = self._beat_beside()
        if beat < told.beat:
            self.refuse(f"this node's logs are older than it told other nodes; {REMEDY}")
        elif beat > told.beat + 1:
            self.refuse(f"this node's view is older than its logs; {REMEDY}")

    def _beat_beside(self) -> int:
        try:
            return int(_BESIDE.unpack(read_file(self._osio, self._beside_path))[1])
        except FileNotFoundError:
            return 0
        except struct.error:
            raise ClusterError(f"{self._beside_path}: damaged") from None

    def _is_newest(self) -> bool:
        told = self._read()
        return told is not None and told.runs[0].token == self.token

    def _read(self) -> Told | None:
        try:
            return marks.unpack_told(read_file(self._osio, self._told_path))
        except FileNotFoundError:
            return None
        except ClusterError:
            raise ClusterError(f"{self._told_path}: damaged") from None

    def _write(self, told: Told) -> None:
        write_file(self._osio, self._beside_path, _BESIDE.pack(told.runs[0].token, told.beat))
        write_file(self._osio, self._told_path, told.pack())
        self._cells[_BEAT] = told.beat

    def _is_there(self, path: str) -> bool:
        try:
            self._osio.stat(path)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = self._osio.open(f"{self._told_path}.lock", os.O_RDWR | os.O_CREAT)
        try:
            self._osio.lock(fd)
            yield
        finally:
            self._osio.close(fd)
