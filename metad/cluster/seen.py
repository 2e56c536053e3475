"""What this node has seen of the directory in etcd, to notice one that was wiped or rolled back.

An etcd that was wiped, or restored from a snapshot, keeps its cluster id, and a watch from a
revision that it does not have yet is silent.  Its view may be an old one, in which a member counts
that was removed since.

Rules of this file:

* What was seen is durable before it is relied upon.
* Two etcds are never trusted at once: a copy of one goes its own way, and would give a mailbox's
  number again.  So another etcd than before is trusted only after `metad cluster
  restore-directory`, which is refused while another node trusts the old one.
* A node that finds this writes it into the directory, for those that were off and cannot know.
* A directory that was found wrong stays wrong, whatever it has later: its revision grows beyond
  what was seen.  Only a greater generation (`metad cluster restore-directory`) is trusted again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace

from metad.cluster.directory_keys import Found, Identity
from metad.cluster.reserve import Reserve
from metad.errors import ClusterError
from metad.system.osio import Osio, read_file

NAME = "etcd-seen"
REMEDY = "give `metad cluster restore-directory` on the node with the greatest epoch"
ELSEWHERE = "cluster.etcd names another etcd than before"
ELSEWHERE_REMEDY = (
    "correct cluster.etcd; if etcd has moved, reload all nodes with the new one, then " + REMEDY
)


@dataclass(frozen=True, slots=True)
class Seen:
    """The identity, the greatest revision, epoch and own pulse, and what was found wrong.  `etcd`:
    which one that is; 0: not known."""

    id: str
    generation: int
    revision: int = 0
    epoch: int = 0
    pulse: int = 0
    frozen: str = ""
    etcd: int = 0

    def encode(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode("ascii")


_KINDS = {field.name: str if field.name in ("id", "frozen") else int for field in fields(Seen)}


class SeenFile:
    """DATA/cluster/etcd-seen."""

    def __init__(self, osio: Osio, path: str) -> None:
        self._osio = osio
        self._path = path
        self._reserve = Reserve(osio, os.path.dirname(path))

    def load(self) -> Seen | None:
        """None: this node has seen no directory yet.  Raises ClusterError, OSError."""
        try:
            data = read_file(self._osio, self._path)
        except FileNotFoundError:
            return None
        try:
            found = json.loads(data)
            if {name: type(value) for name, value in ({"etcd": 0} | found).items()} != _KINDS:
                raise ValueError
        except (ValueError, TypeError, AttributeError):
            raise ClusterError(f"{self._path}: damaged") from None
        return Seen(**found)

    def keep(self, seen: Seen) -> None:
        """Raises OSError."""
        self._reserve.replace(self._path, seen.encode())


def is_elsewhere(seen: Seen | None, found: Found) -> bool:
    """Whether this is another etcd than the one trusted before: a wrong setting, or a copy of it
    that others do not use yet.  That says nothing of the one trusted before."""
    if seen is None or not (seen.id and seen.etcd and found.etcd) or seen.etcd == found.etcd:
        return False
    return found.identity is None or found.identity.generation <= seen.generation


def look(seen: Seen | None, found: Found, own_epoch: int) -> Seen:
    """What has been seen after `found` was read; `frozen` has what is wrong, "" if nothing is.

    `own_epoch`: of the view that this node used before it asked.  A view is in etcd first.
    """
    identity = found.identity
    if seen is None:
        wrong = _missing(found) or _behind(found, own_epoch) or _told(found)
        known = identity if identity is not None and not wrong else Identity("", 0)
        return _taken(Seen(*known, frozen=wrong), found)
    if identity is not None and found.view is not None and identity.generation > seen.generation:
        return _restored(seen, found, identity, own_epoch)
    if seen.frozen and seen.id:
        return seen
    wrong = _missing(found) or _other(seen, identity) or _behind(found, max(seen.epoch, own_epoch))
    wrong = wrong or _rolled_back(seen, found) or _told(found)
    return replace(seen, frozen=wrong) if wrong else _taken(replace(seen, frozen=""), found)


def _restored(seen: Seen, found: Found, identity: Identity, own_epoch: int) -> Seen:
    """A directory that was restored: it must have the newest view."""
    wrong = _behind(found, own_epoch) or _told(found)
    if wrong:
        return replace(seen, frozen=wrong)
    return Seen(*identity, found.revision, found.epoch, pulse=found.pulse or 0, etcd=found.etcd)


def _taken(seen: Seen, found: Found) -> Seen:
    return replace(
        seen,
        revision=max(seen.revision, found.revision),
        epoch=max(seen.epoch, found.epoch),
        etcd=found.etcd or seen.etcd,
    )


def _missing(found: Found) -> str:
    if found.identity is None or found.view is None:
        return "etcd has no directory of this cluster"
    return ""


def _other(seen: Seen, identity: Identity | None) -> str:
    if identity is None or not seen.id:
        return ""
    if identity.id != seen.id or identity.generation < seen.generation:
        return "etcd has another directory than before"
    return ""


def _behind(found: Found, epoch: int) -> str:
    if found.epoch < epoch:
        return f"etcd has gone back to epoch {found.epoch}; this node knows epoch {epoch}"
    return ""


def _told(found: Found) -> str:
    identity = found.identity
    if identity is not None and found.set_back >= identity.generation:
        return "another node has found that etcd was set back"
    return ""


def _rolled_back(seen: Seen, found: Found) -> str:
    if found.revision < seen.revision:
        return f"etcd has gone back to revision {found.revision} from {seen.revision}"
    if (found.pulse or 0) < seen.pulse:
        return "etcd has lost what this node wrote there"
    return ""
