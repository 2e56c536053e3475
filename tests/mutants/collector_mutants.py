"""Seeded bugs of the collector and of backups: the fields of `mutants.Mutant`, same rules."""

from __future__ import annotations

POWER = (
    "crash/test_collector_power_cut.py::test_no_power_cut_during_a_collection_loses_or_revives_mail"
)
TESTS = "store/test_collector.py::test_"
KILLS = "store/test_collector_kills.py::test_killed_at_a_failpoint"
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
