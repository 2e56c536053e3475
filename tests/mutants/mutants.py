"""Seeded bugs of the store and the filters, each with the test that must catch it.

Rules of this file:

* A mutant changes the text of one function; if the text no longer exists, the test of the mutants
  fails: rewrite the bug, do not drop it.
* `caught_by` is a pytest id below tests/.  The best witnesses are independent of the code: power
  cuts, faults, bit flips, the model.
"""

from __future__ import annotations

import inspect
import textwrap
from importlib import import_module
from typing import NamedTuple

from tests.mutants.collector_mutants import COLLECTOR
from tests.mutants.filter_mutants import FILTERS
from tests.mutants.view_mutants import VIEWS

POWER = "crash/test_power_cut.py::test_no_power_cut_loses_or_revives_mail"
FAULTS = "fault/test_faults.py::test_every_call_fails"
UNSYNCED = (
    "store/recovery/test_recovery.py::test_a_group_that_may_be_unsynced_is_kept_in_a_log_of_its_own"
)
SHORT = "fault/test_faults.py::test_every_write_is_short_or_finds_no_space[0-once]"
FLIPS = "fault/test_bitflip.py::test_a_flipped_bit_of_a_log_costs_at_most_its_record"
MODEL = "model/test_model.py::test_the_store_is_as_the_model_says"


class Mutant(NamedTuple):
    name: str
    where: str
    old: str
    new: str
    caught_by: str

    def apply(self) -> None:
        """Put the bug into the running program.  Raises LookupError if the text is missing."""
        module_name, _, path = self.where.partition(":")
        whole = module_name.startswith("metad.")  # not in the store
        module = import_module(module_name if whole else f"metad.store.{module_name}")
        function = module
        for name in path.split("."):
            function = function.__dict__[name]
        text = textwrap.dedent(inspect.getsource(function))  # type: ignore[arg-type]
        if self.old not in text:
            raise LookupError(f"{self.name}: {self.old!r} is not in {self.where}")
        made: dict[str, object] = {}
        code = compile(
            "from __future__ import annotations\n" + text.replace(self.old, self.new),
            f"<mutant {self.name}>", "exec",
        )  # fmt: skip
        exec(code, module.__dict__, made)
        new = inspect.unwrap(made[path.split(".")[-1]])  # type: ignore[arg-type]
        inspect.unwrap(function).__code__ = new.__code__  # type: ignore[arg-type]


MUTANTS = [
    # -- what is durable when
    Mutant("acknowledged before the sync", "log.writer:LogWriter.append",
           "self._sync_now()", "pass", POWER),
    Mutant("synced before it is written", "log.writer:LogWriter.append",
           "self._write(parts, size, after)\n        if self._sync:\n            self._sync_now()",
           "self._sync_now()\n        self._write(parts, size, after)", POWER),
    Mutant("a failed sync is tried again", "log.writer:LogWriter._sync_now",
           "self._osio.fdatasync(self.fd)\n",
           "\n            try:\n                self._osio.fdatasync(self.fd)\n"
           "            except OSError:\n                self._osio.fdatasync(self.fd)\n",
           FAULTS + "[sync-once]"),
    Mutant("a failed sync is ignored", "log.writer:LogWriter._sync_now",
           "raise\n", "pass\n", FAULTS + "[sync-once]"),
    Mutant("a failed group is acknowledged", "commit.committer:Committer._append",
           'return SyncFailedError(f"log {writer.number}: {error}")', "pass",
           FAULTS + "[write-once]"),
    Mutant("a short write is taken for a whole one", "log.writer:LogWriter._write",
           "!= length", "== -1", SHORT),
    Mutant("a poisoned log is written to again", "log.writer:LogWriter.append",
           "self.poisoned = True", "pass",
           "store/log/test_writer.py::test_a_failed_append_poisons_and_leaves_the_end"),
    Mutant("a new log's name is not synced", "log.files:create",
           "osio.fsync_directory(directory)", "pass", POWER),
    Mutant("a new log gets its name before its header is synced", "log.files:create",
           "osio.fsync(fd)", "pass",
           "store/log/test_files.py::test_a_new_log_and_its_name_are_durable"),
    Mutant("a new life begins unsynced", "log.header:rewrite",
           "osio.fdatasync(fd)", "pass",
           "store/log/test_files.py::test_the_two_headers_are_never_under_way_together"),
    Mutant("both headers are under way together", "log.header:rewrite",
           "write_first(osio, fd, header)\n    osio.fdatasync(fd)",
           "write_first(osio, fd, header)",
           "store/log/test_files.py::test_the_two_headers_are_never_under_way_together"),
    Mutant("groups are not aligned", "log.writer:LogWriter.append",
           "self.end = after", "self.end = self.end + size", POWER),
    Mutant("the file system's block is not looked at", "log.alignment:alignment",
           "max(osio.block_size(directory), osio.sector_size(directory), DEFAULT_ALIGN)", "512",
           "store/log/test_alignment.py::test_the_larger_of_block_and_sector_counts"),
    Mutant("expiry believes the id alone", "gc.expiry:Expiry._is_old",
           "or envelope.time_us < before", "or True",
           "store/gc/test_expiry.py::test_mail_of_today_with_an_id_of_last_week_stays"),
    Mutant("hub time follows any jump of the clock", "hub_time:HubTime.look",
           "ahead > JUMP_NS", "False",
           "store/test_hub_time.py::test_a_jump_is_believed_once_it_is_confirmed"),
    Mutant("a start with a wrong clock binds the store", "hub_time:begin",
           "max(real, least) if is_plausible else least", "max(real, least)",
           "store/test_hub_time.py::"
           "test_a_clock_years_ahead_at_a_start_does_not_bind_the_store"),
    Mutant("hub time stands still with the clock's corrections", "hub_time:HubTime.look",
           "self._area.clock_offset += ahead", "pass",
           "store/test_hub_time.py::test_hub_time_follows_the_clock_forward_and_never_back"),
    Mutant("ids of other nodes make hub time", "index.index:Index.greatest_id",
           "if key[8:10] == mine:", "if True:",
           "store/test_hub_time.py::test_the_ids_of_another_node_bind_nothing"),
    Mutant("a closed log is written to", "log.writer:LogWriter.close",
           "self.poisoned = True", "pass",
           "store/log/test_errors.py::test_nothing_is_written_through_a_closed_log"),
    Mutant("a start keeps its ballast", "ballast:Ballast.release_at_start",
           "< self._size", "< 0",
           "store/test_ballast.py::test_a_start_gives_it_up_if_less_than_it_is_free"),
    Mutant("the ballast takes the room of new mail", "ballast:Ballast.look",
           "free > self._needed + self._size", "True",
           "store/test_ballast.py::test_it_is_not_made_where_new_mail_needs_the_room"),
    Mutant("a log takes the last blocks of the index", "metad.system.osio:Osio.allocate",
           "- LEFT_FREE", "- 0",
           "system/test_osio.py::test_a_disk_that_lacks_the_blocks_is_left_as_it_is"),
    Mutant("a large message takes the last blocks of the index",
           "metad.layers.spool:Spool._leave_room", "size + LEFT_FREE", "0",
           "layers/test_spool.py::test_a_file_leaves_the_last_blocks_of_the_disk_to_the_index"),
    Mutant("a full disk stops the start", "log_allocator:LogAllocator.start",
           "error.errno not in (errno.ENOSPC, errno.EDQUOT)", "True",
           "store/test_log_space.py::test_a_full_disk_starts_serves_and_comes_back"),
    Mutant("free logs are no space", "log_space:LogSpace.look",
           "free_logs > keep and self._give_back(keep)", "False",
           "store/test_log_space.py::test_free_logs_count_as_space"),
    Mutant("a log is unlinked on the word of the table", "log_space:LogSpace._discard",
           "log is None or", "False and",
           "store/test_log_space.py::"
           "test_no_log_is_unlinked_whose_own_header_does_not_say_that_it_is_free"),
    Mutant("a group is written where there are no blocks", "log_chain:LogChain.writer_for",
           "if not writer.takes(size, entries_size, left):", "if False:",
           "store/test_log_space.py::test_no_block_for_a_group_refuses_it_and_costs_no_log"),
    Mutant("mail takes the blocks of deletions", "log_chain:LogChain._left_by",
           "else self._for_deletions", "else 0",
           "store/test_log_space.py::test_mail_leaves_blocks_for_deletions"),
    Mutant("a record that cannot be encoded ends all", "commit.committer:Committer._start",
           "self._finish(group, RefusedError(repr(error)))", "pass",
           "store/commit/test_committer.py"
           "::test_a_record_that_cannot_be_encoded_costs_its_group_alone"),
    Mutant("a job that raises ends its thread", "background:JobThread._run",
           "except Exception:", "except ImportError:",
           "store/test_background.py::test_a_job_that_raises_costs_no_other_one"),
    Mutant("a bug while a group is written does not end its log", "log_chain:LogChain.append",
           "except BaseException:", "except OSError:",
           "store/commit/test_committer.py"
           "::test_a_bug_while_a_group_is_written_costs_its_log"),
    Mutant("a group is not bounded by index rows", "commit.group:_as_many_as_fit",
           "entries > _GROUP_ENTRIES", "False",
           "store/commit/test_group.py::test_a_quit_of_many_deletions_is_many_groups"),
    Mutant("all waiting deletions are one group", "commit.group:take_group",
           "entries <= _GROUP_ENTRIES", "True",
           "store/commit/test_group.py::test_a_quit_of_many_deletions_is_many_groups"),
    Mutant("a failed sync of zeros is ignored", "log.writer:LogWriter.zero_step",
           "self._sync_now()", "self._osio.fdatasync(self.fd)",
           "store/log/test_writer.py::test_a_failed_sync_of_zeros_poisons_the_log"),
    Mutant("zeros overtake the mail", "log.writer:LogWriter._claim",
           "self._zeroed = max(self._zeroed, after)", "pass",
           "store/log/test_writer.py::test_zeros_never_touch_mail_that_overtook_them"),
    Mutant("a client hears of a failed sync before it is stated",
           "commit.committer:Committer._appended",
           "self._put_entering(lambda: self._record_and_finish(group, outcome))",
           "self._finish(group, outcome)",
           "store/recovery/test_recovery.py::test_a_refused_deletion_is_not_carried_out_by_a_restart"),
    # -- groups that may be unsynced
    Mutant("the unsynced group is sealed where it lies", "recovery.one_log:LogRecovery._ended",
           "if tail.unsynced:", "if False:",
           UNSYNCED),
    Mutant("the unsynced group is sealed where it lies, by the power cut",
           "recovery.one_log:LogRecovery._ended", "if tail.unsynced:",
           "if False:", POWER),
    Mutant("deletions of the unsynced group are dropped", "log.successor:read_ended",
           "if isinstance(found, Found)",
           "if isinstance(found, Found) and found.header.kind == record.MESSAGE", POWER),
    Mutant("messages of the unsynced group are dropped", "log.successor:read_ended",
           "if isinstance(found, Found)",
           "if isinstance(found, Found) and found.header.kind != record.MESSAGE", POWER),
    Mutant("the old log ends behind the copied group", "log.successor:write_successor",
           "predecessor_end=ended.end", "predecessor_end=old.size - old.align", UNSYNCED),
    Mutant("a log ends before the copied group is durable", "log.files:create",
           "fill(fd)\n        osio.fsync(fd)\n        osio.rename(unfinished, path)\n"
           "        made = path\n        osio.fsync_directory(directory)",
           "osio.fsync(fd)\n        osio.rename(unfinished, path)\n"
           "        made = path\n        osio.fsync_directory(directory)\n        fill(fd)", POWER),
    Mutant("only the last record of a group is in doubt", "log.scan:Scanner.__iter__",
           "if (at < found.offset and is_next) or", "if True or",
           "store/log/test_scan.py::test_the_last_group_begins_where_padding_says"),
    Mutant("a log that cannot be sealed stops the start", "recovery.one_log:LogRecovery._ended",
           "except OSError as error:", "except ZeroDivisionError as error:",
           "store/recovery/test_recovery.py::test_a_log_that_cannot_be_sealed_is_ended_by_another"),
    Mutant("a group that cannot be moved gets a seal, though its sync may have failed",
           "recovery.one_log:LogRecovery._ended", "if successor is None:", "if False:",
           "store/recovery/test_recovery_races.py"
           "::test_a_group_that_cannot_be_moved_for_a_failing_disk_gets_no_seal"),
    # -- lives and ends of logs
    Mutant("a life is used twice", "log_table:LogTable.allocate",
           "max(self._cells[_GREATEST_LIFE] + 1, now_seconds)",
           "max(self._cells[_GREATEST_LIFE], now_seconds)",
           "fault/test_clock.py::test_a_clock_that_stands_still_at_start_gives_new_lives"),
    Mutant("a sealed log is taken for a free one", "log_table:LogTable.allocate",
           "LogState.FREE", "LogState.SEALED",
           "store/test_log_table.py::test_a_free_log_is_used_before_a_new_one"),
    Mutant("the end of a poisoned log is not stated", "log_chain:LogChain._record_in",
           "writer.state_predecessor(failed)", "pass",
           "store/recovery/test_recovery.py::test_a_poisoned_log_ends_where_its_successor_says"),
    Mutant("an unused log's word on a poisoned one is dropped", "log_allocator:LogAllocator._seal",
           " and not writer.log.predecessor_life", "",
           "mutants/witness.py::test_an_empty_successor_keeps_its_word"),
    Mutant("a prepared log is thrown in while it fails", "log_allocator:LogAllocator.take",
           "writer.poisoned", "False",
           "store/test_log_allocator.py::test_a_prepared_log_whose_zeros_failed_is_not_given_out"),
    Mutant("what the table's semaphore refused is forgotten", "log_table:LogTable.catch_up",
           "self._owed", "self._owed.clear()",
           "store/test_log_allocator.py"
           "::test_what_was_given_up_while_the_semaphore_was_held_is_entered_by_a_later_round"),
    Mutant("a log that could not be entered is not given up",
           "log_allocator:LogAllocator._free_unentered",
           "self._table.owe(new.number, LogState.FREE)", "pass",
           "store/test_log_allocator.py"
           "::test_a_log_that_was_made_while_the_semaphore_was_held_is_used_afterwards"),
    Mutant("one free header is not enough", "log.header:merged",
           "if FREE in (first.state, last.state):", "if first.state == last.state == FREE:",
           "store/log/test_header.py::test_one_copy_that_says_free_makes_the_log_free"),
    Mutant("the older life wins", "log.header:merged",
           "max(first, last", "min(first, last",
           "store/log/test_header.py::test_the_copy_of_the_greater_life_wins"),
    Mutant("no room is kept for the seal", "log.writer:LogWriter.fits",
           "after + self._seal_size(len(self.entries) + entries_size)", "after",
           "store/log/test_writer.py::test_a_full_log_can_always_be_sealed"),
    # -- what verifies
    Mutant("no checksum of the payload", "log.record:payload_is_good",
           "return xxh3_128_digest(payload, seed) == header.digest", "return True", FLIPS),
    Mutant("no checksum of the header", "log.record:parse_header",
           "!= check", "== -1", FLIPS),
    Mutant("records of an earlier life pass", "log.record:seed_of",
           "struct.pack(\"<IQ\", number, life)", "struct.pack(\"<IQ\", number, 0)",
           "store/log/test_record.py::test_each_store_log_and_life_has_its_own_seed"),
    Mutant("a scan ends at the first damage", "log.scan:Scanner._search",
           "while at < self._stop:", "while False:", FLIPS),
    Mutant("a damaged record hides its neighbours", "log.scan:Scanner._after_padding",
           "if any(self._octets(at, offset - at)):", "if False:",
           "store/log/test_scan.py::test_a_spoiled_byte_costs_at_most_one_record"),
    Mutant("a place is believed", "reader:Reader._read_at",
           "found.id != message_id", "False",
           "store/test_reader.py::test_a_wrong_place_hands_out_nothing"),
    Mutant("a message is looked up twice at most", "reader:Reader._looks",
           "while (now := self._index.places_and_lives(message_id)) != before:",
           "for now in range(1):",
           "store/test_reader.py::test_a_message_that_is_moved_after_each_look_is_no_damage"),
    Mutant("a stream is not verified", "reader:Reader._verify",
           "payload.digest != found.digest", "False",
           "store/test_reader.py::test_no_spoiled_byte_of_a_record_is_ever_handed_out"),
    Mutant("any copy of a message will do", "reader:Reader._find",
           "and _is_for(found.envelope, mailbox)", "",
           "store/test_clustered.py::test_a_mailbox_gets_the_copy_that_names_it"),
    Mutant("any copy of a large message will do", "reader:Reader._verify",
           "if not _is_for(record.unpack_envelope(packed), mailbox):", "if False:",
           "store/test_clustered.py::test_a_mailbox_gets_the_copy_that_names_it"),
    Mutant("a stream does without its lock", "reader:Reader._open_verified",
           "log_files.try_reader_lock(fd)", "True",
           "store/test_reader.py::test_a_stream_keeps_the_next_life_away"),
    # -- the view
    Mutant("the watermark is ahead of the log", "commit.committer:Committer._append",
           "writer.life, writer.end,", "writer.life, writer.end + 8192,",
           "store/commit/test_committer.py::test_what_the_index_missed_is_there_after_a_restart"),
    Mutant("deletions are not in the footer", "log.footer:deletion_entries",
           "for each in deletion.each()", "for each in []", POWER),
    Mutant("what the index missed is forgotten", "commit.index_feed:IndexFeed.enter",
           "self.lagging = waiting", "self.lagging = []",
           "store/commit/test_committer.py::test_batches_are_entered_in_order_when_the_index_is_back"),
    Mutant("other workers list what a lagging index still has", "commit.index_feed:IndexFeed.enter",
           "self._pending(", "len(",
           "store/test_pending_deletions.py::"
           "test_another_worker_does_not_list_what_a_lagging_index_still_has"),
    Mutant("a log that the index lags behind is sealed at the end",
           "commit.committer:Committer.stop", "writer is not None and self._feed.lagging", "False",
           "store/test_pending_deletions.py::"
           "test_a_worker_that_ends_while_the_index_lags_leaves_its_log_to_recovery"),
    Mutant("a full log that the index lags behind is sealed",
           "commit.committer:Committer._writer_for", "self._feed.lagging and", "False and",
           "store/test_pending_deletions.py::"
           "test_no_full_log_is_sealed_while_the_index_lacks_something_of_it"),
    Mutant("a deletion leaves the usage", "index.lsm:_remove",
           "usage -= ", "usage -= 0 * ", MODEL),
    Mutant("a deletion looks in one level", "index.lsm:Lsm.remove",
           "in self.tables:", "in self.tables[:1]:", MODEL),
    Mutant("a listing is of one level", "index.lsm:Lsm.listing",
           "in reversed(self.tables):", "in self.tables[:1]:", MODEL),
    Mutant("usage stays when entries move", "index.lsm:Lsm._sweep",
           "_add(cursor, entries, usage)", "_add(cursor, entries, {})", MODEL),
    Mutant("usage moves whole with some entries", "index.lsm:Lsm._sweep",
           "usage[follows] = part", "pass",
           "store/index/test_lsm.py::test_a_sweep_takes_the_oldest_of_a_large_mailbox_first"),
    Mutant("what moves stays as well", "index.lsm:_cut",
           "cursor.delete()", "cursor.next()", MODEL),
    Mutant("an index of another layout is believed", "index.state:why_unusable",
           'fields.get("layout") != LAYOUT', "False",
           "store/recovery/test_recovery.py::test_an_index_in_doubt_is_rebuilt[layout]"),
    Mutant("an index is believed after a boot", "index.state:why_unusable",
           '_why_page_cache_is_gone(str(fields.get("boot")), boot)', "None",
           "store/recovery/test_recovery.py::test_an_index_in_doubt_is_rebuilt[boot]"),
    # -- ids, table, locks
    Mutant("ids stand still with the clock", "ids:IdMaker.next",
           "now = self._last_us + 1", "now = self._last_us - 1",
           "fault/test_clock.py::test_ids_are_unique_and_in_order_whatever_the_clocks_do"),
    Mutant("hub time follows a clock that was set back", "hub_time:begin",
           "max(real, least) if", "real if",
           "fault/test_clock.py::test_mail_after_a_restart_is_after_mail_before_it"),
    Mutant("half a change is left as it is", "log_table:LogTable._change",
           "self._roll_forward()", "pass",
           "store/test_log_table.py::test_a_change_killed_at_any_step_is_whole_or_undone"),
    Mutant("a plan counts before it is whole", "log_table:LogTable._plan",
           "plan = self._cells\n", "plan = self._cells\n    plan[PLAN] = 1\n",
           "store/test_log_table.py::test_a_change_killed_at_any_step_is_whole_or_undone"),
    Mutant("the semaphore is posted beside a living holder", "log_table:repair",
           "== HOLDING or is_stopped(pid)", "== -1",
           "store/test_log_table.py::test_a_living_holder_is_left_alone"),
    Mutant("a mailbox has two sessions", "mailbox_locks:MailboxLocks._lock",
           "return False", "return True",
           "store/test_mailbox_locks.py::test_a_mailbox_has_one_session_in_the_hub"),
]  # fmt: skip

MUTANTS += [Mutant(*each) for each in (*COLLECTOR, *FILTERS, *VIEWS)]
