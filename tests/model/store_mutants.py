"""Stores that lack a rule, each of which the search must catch.

Rules of this file:

* A mutant gets only the failures that its counterexample needs, so it is caught in that way and no
  other.
* `steps` is the length of the shortest counterexample; docs/store-model.md has the same figure.
* If a second rule would still catch the mistake, the mutant lacks that one too.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from tests.model.store_failures import Hub
from tests.model.store_model import Found, search
from tests.model.store_state import Left

LOST = "is acknowledged, and a power cut may lose it"
BACK = "may bring it back"
UNLISTED = "the index does not list it"
KILL = Left(1, kills=1)
REFUSAL = Left(1, refusals=1)
SYNC = Left(1, syncs=1)
FLIP = Left(1, flips=1)


class Mutant(NamedTuple):
    """`off`: the rules that it lacks; `about`: what goes wrong; `way`: a step that is part of it.

    `is_slow`: looked for only in full runs.
    """

    name: str
    off: tuple[str, ...]
    left: Left
    steps: int
    about: str
    way: str
    logs: int = 3
    is_slow: bool = False
    clustered: bool = False


GATE = ("gate when copying", "gate when freeing")

MUTANTS = (
    # Rule 2, its three parts, and related rules.
    Mutant(
        "a later watermark moves past survivors that the index refused",
        ("refusal ends the log", "gate when copying"),
        REFUSAL, 27, BACK, "collector: the index refuses the copies", logs=4,
    ),
    Mutant(
        "the index refuses survivors, nothing waits for them",
        ("refusal ends the log", *GATE),
        REFUSAL, 22, "gone", "collector: the index refuses the copies", logs=4,
    ),
    Mutant(
        "survivors' sync fails and nothing says so",
        ("failure is stated", *GATE),
        SYNC, 20, BACK, "collector: the sync of log", logs=4,
    ),
    Mutant(
        "the next collector does not wait for the dead one's recovery",
        GATE, KILL, 21, BACK, "kill -9 of the collector", logs=4, is_slow=True,
    ),
    Mutant(
        "a deletion record is dropped while a copy has a place",
        ("needed deletions stay",), Left(), 13, BACK, "writes free",
    ),
    Mutant(
        "a deletion record is dropped because its message has no row",
        ("no row is no proof",), FLIP, 14, BACK, "loses the row",
    ),
    Mutant(
        "a row that was made for a deletion record tells that there are no copies",
        ("copies are known",), FLIP, 23, BACK, "loses the row",
    ),
    Mutant(
        "a deletion record is dropped while a log is left out as unreadable",
        ("deletions outlast the unread",),
        Left(2, cuts=1, unread=1), 15, BACK, "which is unreadable",
    ),
    # Rule 1.
    Mutant(
        "recovery restores a row from a stale read",
        ("restoring compares",), KILL, 19, "is not its writer's", "the row of log",
    ),
    Mutant(
        "the same, and the log is overwritten",
        ("restoring compares", "header read before reuse"),
        KILL, 26, LOST, "the row of log", is_slow=True,
    ),
    Mutant(
        "tidying sets a row from a stale read",
        ("tidying compares",), KILL, 19, "is not its writer's", "free in the table",
    ),
    Mutant(
        "recovery frees a log by a header that it read before it had the lock",
        ("freed by header under lock",),
        KILL, 23, LOST, "recovery: frees log", is_slow=True,
    ),
    Mutant(
        "recovery seals a log by a header that it read before it had the lock",
        ("sealed by header under lock",),
        KILL, 25, LOST, "recovery: seals log", is_slow=True,
    ),
    Mutant(
        "recovery has the index forget a log after the lock is gone",
        ("forgotten under lock",), KILL, 23, "without a place", "index forgets",
    ),
    Mutant(
        "recovery goes by a row that it read before another life began",
        ("rows compared after headers",),
        Left(2, kills=2), 20, "of another process", "recovery: reads the header", is_slow=True,
    ),
    Mutant(
        "a message is dead because the index does not list it",
        ("death is proven",), FLIP, 9, LOST, "loses the entry",
    ),
    Mutant(
        "a place in another log is a copy, unread",
        ("copies are read",), FLIP, 15, LOST, "a false place",
    ),
    Mutant(
        "a log is reused because the table says free",
        ("header read before reuse",), FLIP, 8, LOST, "the table says free",
    ),
    Mutant(
        "recovery takes a log for a last group because the table says free",
        ("header read before copying",),
        Left(2, kills=1, flips=1), 13, LOST, "the table says free",
    ),
    # The index after the answer.
    Mutant(
        "a session does not wait for what is not entered",
        ("sessions wait",), Left(), 4, UNLISTED, "M0 is answered",
    ),
    Mutant(
        "sessions can know it only after the 250",
        ("cell before answer",), Left(), 4, UNLISTED, "M0 is answered",
    ),
    Mutant(
        "what a dead worker has not entered is not known",
        ("cell outlives the worker",), KILL, 5, UNLISTED, "kill -9 of the worker",
    ),
    Mutant(
        "it is forgotten when the recovery begins",
        ("cell until entered",), KILL, 8, UNLISTED, "recovery: ",
    ),
    Mutant(
        "a log is sealed before it is entered",
        ("entered before the seal",), KILL, 7, UNLISTED, "worker: seals log",
    ),
    Mutant(
        "+OK before the index has the deletion",
        ("deletions entered first",), Left(), 8, "the index lists it", "D0 is answered",
    ),
    # The order of writes.
    Mutant("250 before the sync", ("answer after sync",), Left(), 2, LOST, "worker: writes"),
    Mutant(
        "a failed sync is tried again", ("failed sync is final",), SYNC, 5, LOST, "the sync of log"
    ),
    Mutant(
        "451 before the next log says where the failed one ends",
        ("end stated first",), SYNC, 3, BACK, "the sync of log",
    ),
    Mutant(
        "the watermark is ahead of the log",
        ("watermark is exact",), Left(), 8, "does not list it", "enters what was answered",
    ),
    Mutant(
        "a log is appended to after its recovery",
        ("nothing is appended after recovery",), KILL, 11, LOST, "goes on with log",
    ),
    Mutant("a life is used twice", ("a life is new",), Left(), 18, "gone", "begins log"),
    Mutant(
        "survivors are not synced before the victim is freed",
        ("survivors durable first",), Left(), 12, LOST, "does without a sync",
    ),
    Mutant(
        "survivors are not entered before the victim is freed",
        ("survivors entered first", "gate when freeing"),
        Left(), 14, "without a place", "does not enter the copies",
    ),
    Mutant(
        "places are dropped before the header that says free is durable",
        ("free before forgotten",), KILL, 16, BACK, "kill -9 of the collector",
    ),
    Mutant(
        "a header that says free in the page cache is believed",
        ("free is synced again",), KILL, 18, BACK, "kill -9 of the collector", logs=4,
    ),
    Mutant(
        "the log that says where another ends is freed before it",
        ("successors stay",), Left(2, kills=1, syncs=1), 11, BACK, "which ends log",
    ),
    Mutant(
        "the last group of an unsealed log is left where it is",
        ("last group is copied",), Left(2, kills=1, syncs=1), 17, LOST, "recovery: seals log",
    ),
    Mutant(
        "a last group of survivors counts without a confirmation",
        ("survivors are cut",), Left(3, cuts=1, syncs=1, unread=1), 24, "gone",
        "which is unreadable", logs=4,
    ),
    Mutant(
        "a log is freed before a confirmation covers the copies",
        ("confirmed before freed",), Left(1, cuts=1), 11, LOST, "writes free",
    ),
    Mutant(
        "a copy in a log that failed is relied upon",
        ("copies are final",), Left(3, cuts=1, syncs=1, unread=1), 17, LOST,
        "which is unreadable", logs=4,
    ),
    Mutant(
        "a rebuild applies deletions log by log",
        ("deletions come last", "deletions are remembered"),
        Left(1, cuts=1), 11, "the index lists it", "power cut",
    ),
    # A member of a cluster.
    Mutant(
        "a deletion record is dropped while its tombstone stands",
        ("tombstones keep records",), Left(), 13, BACK, "writes free", clustered=True,
    ),
    Mutant(
        "a copy that comes late is entered over its tombstone",
        ("deletions are remembered",), Left(), 18, "the index lists it", "enters what was answered",
        clustered=True,
    ),
    Mutant(
        "a rebuild knows of no tombstones",
        ("a rebuild makes tombstones",), Left(1, cuts=1), 15, BACK, "power cut", clustered=True,
    ),
    Mutant(
        "a tombstone is forgotten before a late copy is entered",
        ("forgotten in quiet",), Left(), 20, BACK, "the cluster forgets", clustered=True,
    ),
)  # fmt: skip


def find(mutant: Mutant) -> Found:
    """Search for the counterexample of a mutant."""
    hub = Hub(frozenset(mutant.off), clustered=mutant.clustered)
    return search(hub, mutant.logs, mutant.left, mutant.about)


def main() -> None:
    """Print the shortest counterexample of each mutant whose name contains the given words."""
    words = " ".join(sys.argv[1:])
    for mutant in MUTANTS:
        if words in mutant.name:
            print(f"{mutant.name}\n{find(mutant)}\n")


if __name__ == "__main__":
    main()
