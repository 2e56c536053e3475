"""Seeded bugs of the collector and of backups: the fields of `mutants.Mutant`, same rules."""

from __future__ import annotations

POWER = (
    "crash/test_collector_power_cut.py::test_no_power_cut_during_a_collection_loses_or_revives_mail"
)
TESTS = "store/test_collector.py::test_"
KILLS = "store/test_collector_kills.py::test_killed_at_a_failpoint"
WALKS = "workers/test_walks.py::test_"
BACKUP = "store/test_backup.py::test_"

COLLECTOR = [
    # -- order
    ("survivors are not synced", "log:LogWriter.append", "if self._sync:",
     "if self._sync and not self.log.generation:", POWER),
    ("a header is freed without a sync", "logfile:mark_free",
     "header.rewrite(osio, fd, free)",
     "header.write_first(osio, fd, free)\n    header.write_last(osio, fd, free)", POWER),
    ("a log is freed before its mail has moved", "collector:Collector.collect",
     "yield from Evacuation(self._tools, victim, self.figures).steps()",
     "logfile.mark_free(self._osio, fd, victim.log)\n        "
     "yield from Evacuation(self._tools, victim, self.figures).steps()",
     KILLS + "[moved]"),
    ("the number is free before the index forgot it", "collector:Collector._drop_places",
     "self._tools.change(moves.drop_log, number)", "pass",
     TESTS + "what_is_alive_is_moved_and_the_log_is_free"),
    # -- what stays
    ("deletion records are dropped early", "moves:still_needed",
     "any(place.log != number", "any(place.log == -1",
     TESTS + "a_deletion_lives_as_long_as_a_copy_of_what_it_deletes"),
    ("deletion records are dropped early, by the power cut", "moves:still_needed",
     "any(place.log != number", "any(place.log == -1", POWER),
    ("deletion records are kept for ever", "moves:still_needed",
     "if any(place.log != number for place in view.places_of(each))", "",
     TESTS + "only_the_ids_that_are_needed_are_kept"),
    ("a copy names recipients that deleted it", "evacuation:Evacuation._survivor",
     "if r.mailbox in message.mailboxes", "",
     TESTS + "a_moved_message_names_only_its_remaining_recipients"),
    ("dead mail is moved", "moves:_Moving.has_entry", "is not None", "!= 1",
     TESTS + "nothing_of_a_dead_log_is_kept"),
    ("dead mail comes back with its copy", "moves:_Moving.move",
     "if row is None:", "if row is None or not row[0]:",
     TESTS + "a_message_deleted_between_look_and_move_stays_deleted"),
    ("a damaged record is moved as it is", "contents:RecordReader._read",
     "if not record.payload_is_good(head, payload, self._seed):", "if False:",
     TESTS + "damaged_mail_is_set_aside_and_the_rest_moves"),
    # -- what is collected
    ("a log that is not indexed is collected", "collector:Collector._contents",
     "if indexed < contents.end:", "if False:",
     TESTS + "a_log_that_the_index_does_not_have_whole_is_not_collected"),
    ("the word on a poisoned log goes before it", "collector:Collector._stop",
     "raise NotCollectableError", "str",
     TESTS + "a_poisoned_log_goes_before_the_one_that_speaks_of_it"),
    ("a poisoned log is written to", "collector:Collector._free",
     "victim.poisoned or ", "",
     TESTS + "a_poisoned_log_goes_before_the_one_that_speaks_of_it"),
    ("somebody's second name is overwritten", "collector:Collector._free",
     "st_nlink > 1", "st_nlink > 9",
     TESTS + "a_log_with_a_second_name_is_unlinked_and_never_reused"),
    ("a backup is no reason to wait", "pin:FreeLock.acquire",
     "return self._osio.try_lock(self._fd)", "return True",
     TESTS + "while_a_backup_reads_no_log_is_freed"),
    # -- counts
    ("live counts stay with the old log", "moves:_Moving._put_places",
     "self._count(old_places[0], -1)", "pass",
     TESTS + "what_is_alive_is_moved_and_the_log_is_free"),
    # -- expiry
    ("mail expires in a mailbox that is in use", "expiry:Expiry._take",
     "self._locks.acquire(mailbox)", "True",
     "store/test_expiry.py::test_a_mailbox_in_use_is_passed_over_and_named"),
    ("mail expires without the mailbox's lock", "expiry:Expiry._take",
     "self._locks.acquire(mailbox)",
     "self._locks.acquire(mailbox) and self._locks.release(mailbox) is None",
     "store/test_expiry.py::test_it_holds_the_lock_while_it_deletes_and_lets_go"),
    ("what is found before the lock is deleted under it", "expiry:Expiry._step",
     "ids = self._old(mailbox, before, room)", "ids = self._tools.index.oldest(mailbox, room)",
     "store/test_expiry.py::test_what_is_older_goes_and_nothing_else"),
    ("the index hears of an expiry before the disk", "expiry:Expiry._commit",
     'tools.failpoint("deleting")',
     "tools.change(Index.apply, __import__('metad.store.index', fromlist=['x']).Batch("
     "999, 1, 0, [], deletions))\n    " 'tools.failpoint("deleting")',
     "store/test_expiry.py::test_what_cannot_be_written_stays_and_goes_another_time[write]"),
    ("a later group hides what the index lacks", "expiry:Expiry._commit",
     "tools.survivors.seal()", "pass",
     "store/test_expiry.py::test_what_the_index_would_not_take_is_entered_at_the_next_start"),
    ("removal deletes mail of unknown users", "metad.workers.expiry:Walks._due",
     "unknown.note(number)", "found.append(Due(number, 1 << 62))",
     WALKS + "mail_of_a_mailbox_that_nobody_knows_is_kept_and_said"),
    ("a removed user's mail stays", "metad.workers.expiry:Walks._due",
     "isinstance(owner, Removed)", "False and owner",
     WALKS + "a_removed_users_mail_goes_and_nobody_elses"),
    ("a clock that is ahead deletes mail", "metad.workers.expiry:Walks._now",
     "min(self._clock.now_us(), self._osio.time_ns() // 1000)", "self._clock.now_us()",
     WALKS + "a_clock_that_was_ahead_at_the_start_deletes_nothing_once_it_is_right"),
    ("a number is given twice", "metad.users.database:UserDatabase._giving",
     "if known > before:", "if False:",
     "users/test_numbers.py::test_a_database_of_an_earlier_day_goes_on_where_the_later_one_ended"),
    ("what has mail is not reserved", "metad.users.database:UserDatabase.reserve",
     "max(_number(txn, self._meta), known, greatest + 1)", "max(_number(txn, self._meta), known)",
     "users/test_numbers.py::test_what_has_mail_is_reserved_at_a_start"),
    ("a changed user is remembered as it was", "metad.users.lookup:Lookup.expand",
     "known != number or ", "",
     "users/test_known.py::test_a_new_number_policy_and_alias_hold_at_once"),
    # -- backup
    ("a backup takes a log's earlier life", "backup:Backup._link",
     'before is None or replace(before, digest="") != entry', "before is None",
     BACKUP + "a_log_in_its_next_life_is_not_taken_from_the_earlier_backup"),
    ("a restore checks nothing", "backup:_restore_file",
     "if digest != entry.digest:", "if False:", BACKUP + "a_flipped_bit_is_found"),
    ("a restored store makes the same ids", "backup:_restore_identity",
     "old.secret, node)", "old.secret, old.node)", BACKUP + "a_restored_store_is_another_node"),
    ("the hub's own file is linked into the backup", "backup:copy_file",
     "target = osio.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)",
     "os.link(os.readlink(f'/proc/self/fd/{source}'), path)\n"
     "    return manifest.digest(osio, source, entry)",
     BACKUP + "a_backup_has_no_index_and_shares_no_file_with_the_hub"),
]  # fmt: skip
