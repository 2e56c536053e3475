"""On which machine a store was last used: recorded at each start, so that a clone is noticed.

Two hubs with copies of one store assign the same message ids: ids are unique only per node number,
which `metad store restore` changes and a copy of the disk does not.

Rules of this file:

* The note is for people: a hub starts whatever it says, and even without it.
* It has not the machine's id, but a digest of it under the store's secret (machine-id(5)).
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from metad.store.identity import Store
from metad.system.osio import Osio, read_file, write_file

NAME = "machine.json"
MACHINE_ID = Path("/etc/machine-id")


class Machine(NamedTuple):
    """`key`: a digest of the machine's id; empty if it has none."""

    key: str
    hostname: str

    def is_other(self, other: Machine) -> bool:
        """Whether it is certainly another machine."""
        if self.key and other.key:
            return self.key != other.key
        return self.hostname != other.hostname


class Note(NamedTuple):
    """The machine that last used the store; `before`: the previous machine, and until when
    (Unix)."""

    machine: Machine
    before: Machine | None = None
    until: int = 0


def this_machine(store: Store, path: Path = MACHINE_ID) -> Machine:
    text = ""
    with suppress(OSError):
        text = path.read_text("ascii", "replace").strip()
    key = hashlib.blake2b(text.encode(), key=store.secret, digest_size=16).hexdigest()
    return Machine(key if text else "", socket.gethostname())


def read(osio: Osio, store: Store) -> Note | None:
    """The note; None if there is no readable one."""
    try:
        found = json.loads(read_file(osio, os.path.join(store.data, NAME)))
        before = found.get("before")
        return Note(
            Machine(str(found["key"]), str(found["hostname"])),
            Machine(str(before["key"]), str(before["hostname"])) if before else None,
            int(found.get("until", 0)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def note(osio: Osio, store: Store, machine: Machine) -> str | None:
    """Write the note at a start.  Returns a warning if the store comes from another machine."""
    last = read(osio, store)
    if last is not None and last.machine == machine:
        return None
    fields: dict[str, Any] = machine._asdict()
    warning = None
    if last is not None and machine.is_other(last.machine):
        fields |= {"before": last.machine._asdict(), "until": int(time.time())}
        warning = (
            f"this store was last used on another machine ({last.machine.hostname}): if a hub "
            "still runs there with a copy of it, both make the same message ids; see metad doctor"
        )
    elif last is not None and last.before is not None:
        fields |= {"before": last.before._asdict(), "until": last.until}
    with suppress(OSError):
        write_file(osio, os.path.join(store.data, NAME), (json.dumps(fields) + "\n").encode())
    return warning
