"""Seeded bugs of what is not a log: the index in pieces, the users database, small files.

Name, place, what is there, the bug, and the test that must catch it.
"""

from __future__ import annotations

TORN = "crash/test_torn_index.py::test_states_that_were_believed_are_noticed"
WATCH = "master/test_index_watch.py"
USERS = "crash/test_torn_users.py::test_a_change_of_users_is_whole_or_did_not_happen"
REPAIR = "users/test_repair.py"
FILES = "fault/test_unreadable_files.py::"

VIEWS = (
    (
        "an index's free pages are not looked at",
        "index.probe:_walk",
        "if reason is not None:",
        "if False:",
        TORN,
    ),
    (
        "an index is believed after another mount",
        "index.state:_why_page_cache_is_gone",
        'if its_mount != mount and not {its_mount, mount} & {"", "0"}:',
        "if False:",
        "store/index/test_suspect.py::"
        "test_a_file_system_that_was_remounted_makes_a_dirty_index_unusable",
    ),
    (
        "a free page may be in use",
        "metad.system.lmdb_pages:_Pages.why_wrong",
        "if len({*used, *free}) != len(used) + len(free):",
        "if False:",
        TORN,
    ),
    (
        "a failed write-back is forgotten where it cannot be noted",
        "metad.master.index_watch:IndexWatch._mark",
        "self._unnoted = reason",
        "pass",
        WATCH,
    ),
    (
        "an abort of LMDB's is none of the index",
        "metad.master.index_watch:_crashed",
        "-code in CRASHES",
        "-code in CRASHES[:2]",
        WATCH,
    ),
    (
        "a recovery is tried again for ever",
        "metad.master.index_watch:IndexWatch.recovers_again",
        "self._recovered_again = True",
        "pass",
        WATCH,
    ),
    (
        "a spoiled meta page of the users is left",
        "metad.users.repair:repair_users",
        "if lmdb_pages.restore_meta(osio, str(path)):",
        "if False:",
        USERS,
    ),
    (
        "the bad meta page is written over the good one",
        "metad.system.lmdb_pages:restore_meta",
        "other = 1 - good[0]",
        "other = good[0]",
        USERS,
    ),
    (
        "a salvaged users database takes missing users for unknown",
        "metad.users.repair:_salvage",
        "_note_loss(txn, tables[META])",
        "pass",
        REPAIR,
    ),
    (
        "users are salvaged from one end alone",
        "metad.users.repair:_copy_table",
        "for backwards in (False, True):",
        "for backwards in (False,):",
        REPAIR + "::test_a_bad_leaf_costs_the_users_in_it_and_no_others",
    ),
    (
        "a damaged users database is thrown away",
        "metad.users.repair:_set_aside",
        "osio.rename(str(users / _FILE), str(kept))",
        "osio.unlink(str(users / _FILE))",
        REPAIR,
    ),
    (
        "numbers that cannot be read are given again",
        "metad.users.database:UserDatabase.reserve",
        "max(_number(txn, self._meta), known, greatest + 1)",
        "max(known, greatest + 1)",
        FILES + "test_numbers_that_cannot_be_read_are_written_again_and_given_once",
    ),
    (
        "an index that is not noted as dirty stays clean",
        "index.state:mark_dirty",
        "osio.unlink(os.path.join(directory, STATE_FILE))",
        "pass",
        FILES + "test_an_index_that_cannot_be_noted_as_dirty_is_rebuilt_by_the_next_start",
    ),
    (
        "a free log that a recovery unlinked stays in the table",
        "recovery.one_log:Numbers.give_back",
        "is_free = there and not given.fresh",
        "is_free = not given.fresh",
        "store/recovery/test_recovery_races.py"
        "::test_a_free_log_that_a_recovery_could_not_replace_is_gone_from_the_table",
    ),
)
