"""What `metad mail import` is told of a message that is not stored."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from metad.errors import EX_DATAERR, EX_TEMPFAIL, NoSpaceError, UnknownUserError
from metad.sessions.import_socket import Answer, ImportSession


@pytest.mark.parametrize(
    ("error", "code", "remedy"),
    [
        (NoSpaceError("full"), EX_TEMPFAIL, "metad status shows"),
        (OSError(5, "Input/output error"), EX_TEMPFAIL, "the hub's log"),
        (RuntimeError("a layer's own"), EX_TEMPFAIL, "the hub's log"),
        (UnknownUserError("there is no mailbox 7"), EX_DATAERR, None),
        (ValueError("a bare LF in the message"), EX_DATAERR, None),
    ],
)
def test_what_may_succeed_later_is_told_from_what_never_will(
    error: Exception, code: int, remedy: str | None
) -> None:
    answer = Answer(cast(ImportSession, SimpleNamespace(answered=lambda: None)))
    answer.refuse(error)
    text: dict[str, Any] = answer.text or {}
    assert text["exit_code"] == code
    assert str(error.args[-1]) in text["error"]
    assert remedy in text["remedy"] if remedy else "remedy" not in text
