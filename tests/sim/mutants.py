"""Hubs that lack a rule, each of which some seed of CI's must catch.

Rules of this file:

* A mutant changes the text of functions (tests.mutants): if it no longer exists, the test fails:
  rewrite the bug, do not drop it.
* If a second rule would still catch the mistake, the mutant lacks that one too.
* `seed` is where it was last caught, to avoid a search; any seed of CI will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.mutants import mutants
from tests.support.children import in_child

Edit = tuple[str, str, str]


class Mutant(NamedTuple):
    """`edits`: module and function, the present text, and the bug."""

    name: str
    edits: tuple[Edit, ...]
    seed: int = 0

    def apply(self) -> None:
        """Put the bug into the running program.  Raises LookupError if the text is missing."""
        for where, old, new in self.edits:
            mutants.Mutant(self.name, where, old, new, "").apply()

    def verdict(self, seeds: range, run: Callable[[int], object]) -> str:
        """In a child, which has the bug: "caught by seed ...", by the first for which `run` raises
        AssertionError, or why not."""
        return in_child(lambda: self._try(seeds, run))

    def _try(self, seeds: range, run: Callable[[int], object]) -> str:
        try:
            self.apply()
        except LookupError as error:
            return f"the text is not there: {error}"
        for seed in self._in_order(seeds):
            try:
                run(seed)
            except AssertionError as error:
                return f"caught by seed {seed}: {error}"
        return "no seed sees it"

    def _in_order(self, seeds: range) -> Iterator[int]:
        """The one that caught it last comes first."""
        yield self.seed
        yield from (seed for seed in seeds if seed != self.seed)


STALE = ("log_table:LogTable.restore", "(now.owner, now.life) != (was.owner, was.life)", "False")

# What is compared when the headers have been read would catch most of them.
NOT_AGAIN = ("recovery.hub:Recovery.recover_process", "if _is_still(table.row(n), row)}", "}")

COPIES_COUNT = (
    "recovery.one_log:LogRecovery._ended",
    "if tail.unsynced and log.generation and not", "if False and not",
)  # fmt: skip

MUTANTS = (
    # -- rule 1: nothing is destroyed without a verified record
    Mutant("a recovery restores a row from a stale read", (STALE, NOT_AGAIN), 226),
    Mutant("the same, and the log is overwritten", (
        STALE, NOT_AGAIN,
        ("log.files:lock_free",
         "(log.state, log.number, log.life) != (header.FREE, new.number, old_life)", "False"),
    ), 226),
    Mutant("a message is dead on the index's word alone", (
        ("gc.copy:SurvivorCopy._must_be_proven", "if not lacking or", "if True or"),
    ), 24),
    # -- rule 2: no copy that the index does not know outlives its deletion record
    Mutant("the index refuses survivors, and a later watermark skips them", (
        ("gc.copy:Tools.catch_up", "self.change(enter, part)\n        del behind[0]",
         "del behind[0]\n        self.change(enter, part)"),
    ), 32),
    Mutant("a survivors' sync fails and nothing says so", (
        ("gc.survivor_logs:SurvivorLogs._append",
         "with suppress(RefusedError):  # then `settle` retries\n"
         "            chain.record_end()\n", "chain.failed = None\n"),
        COPIES_COUNT,
    ), 193),
    Mutant("a successor collects before the dead collector's log is recovered", (
        ("gc.collector:Collector._unrecovered", "row.generation and", "False and"),
        COPIES_COUNT,
    ), 10),
    Mutant("a log is freed for copies without a confirmation", (
        ("gc.collector:Collector._collect", "self._tools.confirm()", "pass"),
    ), 0),
    Mutant("a deletion record is dropped while a copy has a place", (
        ("gc.evidence:Evidence.may_drop", "return self._may_drop[message_id]", "return True"),
    ), 10),
    # -- rule 8: what QUIT acknowledged as deleted is seen by no later session
    Mutant("another worker lists what was deleted, while the index lags", (
        ("pending_deletions:PendingDeletions.may_have", "any(word >> bit & 1 for word in column)",
         "False"),
    ), 16),
    # -- at rest, the table says of each log what is there
    Mutant("a log that could not be made stays in the table as being made", (
        ("log_allocator:LogAllocator._put_back",
         "self._table.give_up(given.number, LogState.NONE)", "pass"),
    ), 9),
    Mutant("a log that could not be entered stays in the table as being made", (
        ("log_allocator:LogAllocator._free_unentered", "self._table.owe(new.number, LogState.FREE)",
         "pass"),
    ), 2183),
    Mutant("a log whose file a recovery removed stays in the table as free", (
        ("recovery.hub:Recovery.recover_process",
         "if not table.restore(row, was) and row.number in self._unlinked:",
         "if not table.restore(row, was) and False:"),
    ), 17400),
    # -- what is durable when, and entered when
    Mutant("acknowledged before the sync", (
        ("log.writer:LogWriter.append", "self._sync_now()", "pass"),
    ), 3),
    Mutant("survivors are not synced", (
        ("log.writer:LogWriter.append", "if self._sync:",
         "if self._sync and not self.log.generation:"),
    ), 3),
    Mutant("a group that the index refused is forgotten", (
        ("commit.index_feed:IndexFeed.enter", "merged([*self.lagging, *self.answered, *batches])",
         "merged([*self.answered, *batches])"),
    ), 0),
)  # fmt: skip
