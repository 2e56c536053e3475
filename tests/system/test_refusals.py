"""The reason of every refusal that the hub knows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metad import errors
from metad.errors import RefusedError, Reply
from metad.system.refusals import count_refusal, reason
from metad.system.shared_memory import HEAD_CELLS, PROCESS_CELLS, Cell, ProcessRow

EXPECTED = {
    "RefusedError": Cell.REFUSED_FAILURE,
    "UnknownUserError": Cell.REFUSED_UNKNOWN,
    "ForeignDomainError": Cell.REFUSED_RELAY,
    "DisabledUserError": Cell.REFUSED_DISABLED,
    "MessageTooLargeError": Cell.REFUSED_SIZE,
    "HeaderTooLargeError": Cell.REFUSED_SIZE,
    "OverQuotaError": Cell.REFUSED_QUOTA,
    "MailboxFullError": Cell.REFUSED_QUOTA,
    "TooMuchMailError": Cell.REFUSED_RATE,
    "NoSpaceError": Cell.REFUSED_SPACE,
    "SyncFailedError": Cell.REFUSED_FAILURE,
    "UsersLostError": Cell.REFUSED_FAILURE,
    "DrainingError": Cell.REFUSED_OTHER,
    "MailLoopError": Cell.REFUSED_OTHER,
    "TooManyMailboxesError": Cell.REFUSED_OTHER,
    "MixedRecipientsError": Cell.REFUSED_OTHER,
}


def kinds(root: type[RefusedError] = RefusedError) -> Iterator[type[RefusedError]]:
    if root.__module__ == errors.__name__:
        yield root
        for one in root.__subclasses__():
            yield from kinds(one)


def test_every_error_with_an_answer_of_its_own_has_a_reason() -> None:
    found = {one.__name__: reason(one.smtp) for one in kinds() if "smtp" in vars(one)}
    assert found == EXPECTED


@pytest.mark.parametrize(
    "reply", [Reply(550, "5.5.2", "bare <LF>"), Reply(501, "5.1.3", "bad address"),
              Reply(553, "5.6.7", "SMTPUTF8")], ids=lambda reply: reply.enhanced,
)  # fmt: skip
def test_what_the_client_wrote_wrongly_is_syntax(reply: Reply) -> None:
    assert reason(reply) == Cell.REFUSED_SYNTAX


def test_a_refusal_is_counted_in_all_and_by_its_reason() -> None:
    cells = memoryview(bytearray(8 * (HEAD_CELLS + PROCESS_CELLS))).cast("Q")
    row = ProcessRow(cells, 0)
    count_refusal(row, errors.OverQuotaError.smtp)
    count_refusal(row, Reply(501, "", "no code"))
    assert row[Cell.REFUSED] == 2
    assert row[Cell.REFUSED_QUOTA] == row[Cell.REFUSED_OTHER] == 1
