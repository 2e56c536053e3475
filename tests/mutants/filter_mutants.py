"""Seeded bugs of the filters: the fields of `mutants.Mutant`, same rules."""

from __future__ import annotations

FIELDS = "filters/test_fields.py::test_"
CHAIN = "filters/test_breaker.py::test_"
RESULTS = "filters/test_authentication.py::test_"
SESSION = "sessions/test_smtp_filtered.py::test_"
FUZZ = "fuzz/test_fuzz.py::test_mutants_of_the_corpus_are_taken"
RSPAMD = "filters/test_rspamd.py::test_"

FILTERS = [
    # -- what a lying rspamd could do with its fields
    ("a field to add may hold a second one", "metad.filters.fields:make_field",
     'if _CONTROLS.search(value):', "if False:",
     FIELDS + "no_value_makes_a_second_field"),
    ("a fuzzed field to add may hold a second one", "metad.filters.fields:make_field",
     'if _CONTROLS.search(value):', "if False:", FUZZ + "[milter]"),
    ("the name of a field is not looked at", "metad.filters.fields:make_field",
     "if not _NAME.fullmatch(name):", "if False:", FUZZ + "[milter]"),
    ("a field is removed without its continuation lines", "metad.filters.fields:without",
     "_FIELD.sub(lambda one: b\"\" if test(one[1].lower(), one[2]) else one[0], header)",
     "b\"\".join(line for line in header.splitlines(keepends=True)"
     " if not test(line.partition(b\":\")[0].strip().lower(), line.partition(b\":\")[2]))",
     FIELDS + "fields_are_removed_by_number"),
    ("fields are numbered from the wrong end", "metad.filters.fields:remove",
     "count + 1 + number", "-number", FIELDS + "fields_are_removed_by_number"),
    ("fields to add are not counted", "metad.filters.results:_added",
     "len(found) > MOST_FIELDS or", "", FUZZ + "[rspamd]"),
    ("a score may be endless", "metad.filters.results:_number",
     "if not math.isfinite(number):", "if False:", FUZZ + "[rspamd]"),
    ("the text of a reply is not one line", "metad.filters.results:_line",
     'one if " " <= one <= "~" else " "', "one", FUZZ + "[rspamd]"),
    # -- forged results
    ("a result behind a comment is taken for ours",
     "metad.filters.authentication:_behind_comments",
     'if one == b"(":', 'if one == b"[":', RESULTS + "a_field_of_others"),
    ("what cannot be read is a result of others", "metad.filters.authentication:is_ours",
     "found is None or not _ENDS.match(rest, found.end())", "found is None",
     RESULTS + "a_field_that_claims_to_be_ours"),
    ("a forged result in capitals comes in", "metad.filters.authentication:is_ours",
     "name.strip().lower()", "name.strip()", RESULTS + "a_field_that_claims_to_be_ours"),
    ("forged results are left in", "metad.sessions.smtp_checked:CheckedSmtpSession._clean_header",
     "cleaned = without(header, is_forged)", "cleaned = header",
     SESSION + "no_forged_result_comes_in"),
    # -- failures
    ("a filter that cancels itself holds its session", "metad.filters.chain:Guarded.ask",
     "if _is_cancelled():", "if True:", CHAIN + "a_filter_that_cancels_itself_has_failed"),
    ("there is no deadline", "metad.filters.chain:Guarded.ask",
     "asyncio.timeout(chain.rules.deadline)", "asyncio.timeout(None)",
     CHAIN + "a_filter_that_never_answers_is_not_waited_for"),
    ("a failure is an acceptance without a mark", "metad.filters.chain:FilterChain._check",
     "(unchecked(reason),)", "()", CHAIN + "any_other_answer_is_a_failure"),
    ("an open breaker lets all calls through", "metad.filters.breaker:Breaker.allows",
     "if now < self._until or self._probing:", "if now < self._until:",
     CHAIN + "one_call_at_a_time_tries_again_after_pauses_that_double"),
    ("who wants no filter is deferred with the others", "metad.filters.chain:FilterChain._check",
     "_NOTHING if wish.off else failed", "failed",
     CHAIN + "who_wants_no_filter_is_not_hit_by_its_failure"),
    ("connections to rspamd have no bound", "metad.filters.pool:HttpPool.__init__",
     "asyncio.Semaphore(connections)", "asyncio.Semaphore(10_000)",
     "filters/test_pool.py::test_there_are_never_more_connections_than_allowed_and_all_get_their_turn"),
    # -- what is stored
    ("the size is that of the message before its header was cut",
     "metad.sessions.smtp_checked:CheckedSmtpSession._changed",
     "octets = envelope.octets - len(header)", "octets = envelope.octets",
     SESSION + "trace_and_rest_are_the_message_and_their_size_is_exact"),
    ("a held header is not counted", "metad.sessions.smtp_checked:CheckedSmtpSession._split",
     "max(0, splitter.held - before)", "0",
     SESSION + "a_held_header_counts_and_is_given_back"),
    ("the own score of a user refuses nothing", "metad.filters.rspamd:action_for",
     "if score >= wishes.refuse:", "if False:", RSPAMD + "a_users_scores_decide"),
    ("the score of a user overrides what a rule forced", "metad.filters.rspamd:action_for",
     "if report.forced or", "if", RSPAMD + "what_a_rule_forced_no_score_changes"),
    ("what rspamd discards is dropped", "metad.filters.rspamd:RspamdFilter._verdict",
     'if action in ("reject", "discard"):', 'if action == "reject":',
     RSPAMD + "mail_that_rspamd_would_discard_is_refused"),
]  # fmt: skip
