"""How a hub handles rspamd's answers, without rspamd: the test makes its report."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from metad import limits
from metad.filters.base import FilterContext, Message, Preferences, Session, Verdict
from metad.filters.body import Body, of_bytes
from metad.filters.http import BODY_LIMIT, Response
from metad.filters.pool import Address
from metad.filters.results import Report, ReportError, read_report
from metad.filters.rspamd import REFUSED, RspamdError, RspamdFilter, action_for

SESSION = Session(
    "192.0.2.1", "smtp", "mx.example.net", "TLSv1.3", "A_CIPHER", "a@example.net", ("b@x.org",)
)
OPTIONS = {
    "address": Address("/nowhere"), "connections": 2, "authserv_id": "mx.example.org",
    "size": 1000, "oversize": "skip", "spam": "mark", "hostname": False,
}  # fmt: skip


def report(action: str, score: float, **more: Any) -> dict[str, Any]:
    return {"action": action, "score": score, "required_score": 15.0, "symbols": {}} | more


class Asked:
    """Replaces the pool; `heads` and `bodies` are the requests."""

    def __init__(self, answer: dict[str, Any], status: int = 200) -> None:
        self._response = Response(status, json.dumps(answer).encode(), True)
        self.heads: list[str] = []
        self.bodies: list[bytes] = []

    async def post(self, head: bytes, body: Body) -> Response:
        self.heads.append(head.decode())
        self.bodies.append(b"".join(bytes(one) for one in body.parts()))
        return self._response

    def close(self) -> None:
        pass


def judge(
    answer: dict[str, Any],
    *wishes: Preferences,
    text: bytes = b"Subject: x\r\n\r\ntext\r\n",
    status: int = 200,
    **options: Any,
) -> tuple[Any, Asked, list[str]]:
    """The verdicts, what rspamd was asked, and the lines of the log."""
    lines: list[str] = []

    async def ask() -> tuple[Any, Asked]:
        one = RspamdFilter()
        loop = asyncio.get_running_loop()
        one.start(FilterContext(loop, "mx.example.org", OPTIONS | options, lines.append))
        asked = Asked(answer, status)
        one._pool = asked  # type: ignore[assignment]
        message = Message(SESSION, "1" * 32, len(text), of_bytes(text), wishes or (Preferences(),))
        found = await one.message(message)
        one.stop()
        return found, asked

    found, asked = asyncio.run(ask())
    return found, asked, lines


def verdict(answer: dict[str, Any], **options: Any) -> Verdict:
    found = judge(answer, **options)[0][Preferences()]
    assert isinstance(found, Verdict)
    return found


def test_every_fact_of_a_session_is_in_the_request() -> None:
    (head,) = judge(report("no action", 0))[1].heads
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    assert fields == {
        "Host": "localhost", "Content-Length": "20", "Queue-Id": "1" * 32, "From": "a@example.net",
        "Rcpt": "b@x.org", "Ip": "192.0.2.1", "Helo": "mx.example.net", "TLS-Version": "TLSv1.3",
        "TLS-Cipher": "A_CIPHER", "Deliver-To": "b@x.org",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("action", "refusal"),
    [
        ("no action", None), ("add header", None), ("rewrite subject", None), ("quarantine", None),
        ("greylist", "451 4.7.1"), ("soft reject", "451 4.7.1"), ("reject", "550 5.7.1"),
    ],
)  # fmt: skip
def test_each_action_has_its_reply(action: str, refusal: str | None) -> None:
    found = verdict(report(action, 9)).refusal
    assert (f"{found.code} {found.enhanced}" if found else None) == refusal


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("5.7.1 Gtube\r\n250 Ok", "Gtube  250 Ok"), ("550 5.7.1 No", "No"), ("", REFUSED),
        ({"a": 1}, REFUSED), ("\0" * 900, REFUSED),
        ("ä" * 3 + "x" * 900, "x" * 397),
    ],
)  # fmt: skip
def test_the_client_is_told_one_line_of_ascii(text: object, told: str) -> None:
    found = verdict(report("reject", 20, messages={"smtp_message": text})).refusal
    assert found is not None
    assert found.text == told


def test_mail_that_rspamd_would_discard_is_refused() -> None:
    found = verdict(report("discard", 20)).refusal
    assert found is not None
    assert found.code == 550


def test_junk_is_what_is_quarantined_and_by_setting_what_is_spam() -> None:
    assert verdict(report("quarantine", 9)).junk
    assert not verdict(report("add header", 9)).junk
    assert verdict(report("add header", 9), spam="junk").junk
    assert not verdict(report("no action", 1), spam="junk").junk


def test_a_subject_is_left_alone_and_that_is_told_once() -> None:
    found, _, lines = judge(report("rewrite subject", 9, subject="*** SPAM"))
    (one,) = found.values()
    assert one.refusal is None
    assert one.remove == ()
    assert ("X-Spam", "Yes") in one.add
    assert [name for name, _ in one.add if name.lower() == "subject"] == []
    assert len(lines) == 1
    assert "does not change fields of the sender" in lines[0]


CALM, STRICT = Preferences(mark=12, refuse=30), Preferences(refuse=5)


@pytest.mark.parametrize(
    ("action", "score", "wishes", "found"),
    [
        ("add header", 7, CALM, "no action"), ("add header", 13, CALM, "add header"),
        ("reject", 20, CALM, "add header"), ("reject", 31, CALM, "reject"),
        ("no action", 5, STRICT, "reject"), ("no action", 4.9, STRICT, "no action"),
        ("reject", 16, Preferences(mark=20), "reject"), ("greylist", 4, CALM, "greylist"),
        ("quarantine", 13, CALM, "quarantine"), ("quarantine", 7, CALM, "no action"),
        ("add header", 7, Preferences(), "add header"),
    ],
)  # fmt: skip
def test_a_users_scores_decide(action: str, score: float, wishes: Preferences, found: str) -> None:
    given = Report(action, score, False, "", {}, (), ())
    assert action_for(given, wishes) == found


def test_what_a_rule_forced_no_score_changes() -> None:
    forced = json.dumps(report("reject", 0.5, passthrough_module="antivirus")).encode()
    assert action_for(read_report(forced), CALM) == "reject"
    low = json.dumps(report("reject", 3)).encode()  # below required_score: some rule forced it
    assert action_for(read_report(low), CALM) == "reject"
    soft = json.dumps(report("soft reject", 5)).encode()
    assert action_for(read_report(soft), STRICT) == "soft reject"


def test_who_has_opted_out_gets_the_message_as_it_was_sent() -> None:
    off = Preferences(off=True)
    found = judge(report("reject", 50), off, STRICT)[0]
    assert found[off] == Verdict()
    assert found[STRICT].refusal is not None


def test_a_large_message_is_not_checked_or_in_part() -> None:
    text = b"Subject: x\r\n\r\n" + b"line\r\n" * 1000
    found, asked, _ = judge(report("reject", 50), text=text)
    assert found.refusal is None
    assert found.add == (("X-Metad-Filter", "unchecked (too large)"),)
    assert asked.bodies == []
    _, asked, _ = judge(report("no action", 0), text=text, oversize="partial")
    assert asked.bodies == [text[:1000]]


@pytest.mark.slow
@pytest.mark.parametrize("one", [b"[]", b"{}", b"1.1", b'"ab"', b'{"a":{}}', b"[[[]]]"])
def test_the_worst_answer_takes_no_more_memory_than_is_declared(one: bytes) -> None:
    wrong = b'{"action": "no action", "score": 1, "symbols": ['
    body = wrong + b",".join([one] * ((BODY_LIMIT - len(wrong) - 2) // (len(one) + 1))) + b"]}"
    assert len(body) <= BODY_LIMIT
    tracemalloc.start()
    try:
        with pytest.raises(ReportError):
            read_report(body)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < limits.FILTER_ANSWER_MEMORY


def test_a_part_of_a_message_is_read_no_sooner_than_it_is_sent() -> None:
    """Messages that wait for a connection use no memory beyond their own buffers."""
    read: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(100):
            read.append(number)
            yield b"..\r\n" * 100

    body = Body(pieces, 100 * 300, 10_000).first(700)
    assert read == []
    assert b"".join(bytes(one) for one in body.parts()) == (b".\r\n" * 300)[:700]
    assert read == [0, 1, 2]


def test_any_other_status_is_a_failure() -> None:
    with pytest.raises(RspamdError, match="503"):
        judge(report("no action", 0), status=503)


@pytest.mark.parametrize(
    "text",
    [
        b'{"action": "reject", "score": %s}' % (b"9" * 400), b'{"action": "reject", "score": NaN}',
        b'{"action": "reject", "score": Infinity}', b'{"action": "reject", "score": true}',
        b'{"action": "reject", "score": 1e999}', b"[" * 100_000, b"\xff\xfe", b"",
        b'{"action": "no action", "score": 1, "milter": {"remove_headers": {"X": true}}}',
        b'{"action": "no action", "score": 1, "milter": {"add_headers": {"X": {"value": "y",'
        b' "order": true}}}}',
        b'{"action": "no action", "score": 1, "symbols": {"X": {"score": ' + b"9" * 400 + b"}}}",
    ],
)  # fmt: skip
def test_what_is_no_report_is_one_error(text: bytes) -> None:
    with pytest.raises(ReportError):
        read_report(text)
