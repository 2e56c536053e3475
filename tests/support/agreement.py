"""Whether logs, index and fsck agree: faults that the oracle does not see, because no client would.

Rules of this file:

* fsck names damage in logs, and finds nothing wrong with the index: every copy in a log is known,
  every place is one, every deletion record is noted.
* An index that was kept is the one that a rebuild makes of the logs, places included.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from metad.store.fsck.fsck import Fsck, Plan
from metad.store.index.index import Index
from metad.store.index.rows import (
    UNFOUNDED,
    Deleted,
    LogCounts,
    unpack_deleted,
    unpack_places,
    unpack_references,
)
from metad.store.log.place import Place
from metad.store.usage import Usage
from metad.system.osio import Osio
from tests.support.store_kit import StoreKit


@dataclass
class Dump:
    """An index, row by row; what differs with the order of events alone is left out."""

    entries: dict[int, bytes] = field(default_factory=dict)
    usages: dict[int, Usage] = field(default_factory=dict)
    places: dict[str, tuple[int, list[Place], list[Deleted]]] = field(default_factory=dict)
    logs: dict[int, LogCounts] = field(default_factory=dict)


def dump(path: str) -> Dump:
    index = Index(path)
    made = Dump()
    try:
        for mailbox, usage in index.usages():
            if usage.messages:
                made.usages[mailbox] = usage
                made.entries[mailbox] = index.listing(mailbox)
        with index.reading() as txn:
            for key, value in txn.cursor(index.tables.places):
                row = bytes(value)
                places = sorted(unpack_places(row))
                deleted = sorted(set(unpack_deleted(row)) - {UNFOUNDED})
                made.places[bytes(key).hex()] = (unpack_references(row), places, deleted)
        made.logs = {n: counts for n, counts in index.logs().items() if counts.watermark}
    finally:
        index.close()
    return made


def assert_agree(kit: StoreKit, *, damage: bool = False) -> list[str]:
    """Of a recovered store that is not open: what fsck reports of its logs.

    `damage`: the disk may have spoiled something, and fsck names what.
    """
    lines: list[str] = []
    Fsck(Osio(), kit.store, Plan(kit.boot), lines.append).run()
    wrong = [line for line in lines if not (damage and line.startswith("log "))]
    assert not wrong, f"fsck: {wrong[:5]}"
    return lines


def assert_rebuild_is_same(kit: StoreKit) -> None:
    """The index of a recovered store is replaced by a rebuilt one, and nothing has changed."""
    kept = dump(kit.store.index)
    kit.drop_index()
    kit.recover()
    made = dump(kit.store.index)
    for what in ("entries", "usages", "places", "logs"):
        before, after = getattr(kept, what), getattr(made, what)
        differ = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
        told = [f"{key}: {before.get(key)} kept, {after.get(key)} rebuilt" for key in differ[:3]]
        assert not differ, f"{len(differ)} {what} differ: {'; '.join(told)}"
