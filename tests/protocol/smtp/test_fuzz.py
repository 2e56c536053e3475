"""SMTP on any input: nothing raises, and how it was cut makes no difference."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metad.protocol.smtp.machine import EndOfMessage, SmtpSettings
from tests.support.smtp_session import HOST, LMTP, PLAIN, REPAIR, TLS, Session, run, single

TEXT = b"Received: x\r\nSubject: y\r\n\r\n..dot\r\n...\r\nline\r\n"
DIALOGUE = (
    b"EHLO c\r\nnoop\r\nMAIL FROM:<a@b> SIZE=10\r\nRCPT TO:<c@d>\r\nRCPT TO:<no@d>\r\nDATA\r\n"
    + TEXT
    + b".\r\nMAIL FROM:<>\r\nRCPT TO:<c@d>\r\nBDAT 12\r\nA: b\r\n\r\n.x\r\nBDAT 3 LAST\r\n\n.y"
    + b"RSET\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 3\r\nx\r\nBDAT 0 LAST\r\nWHAT\r\n"
    + b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nbad\nline\r\n.\r\nHELP\nx\r\n"
    + b"x" * 2100
    + b"\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"
    + b"y" * 1200
    + b"\r\n.\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 1100 LAST\r\n"
    + b"z" * 1100
    + b"VRFY c\r\nQUIT\r\nNOOP\r\n"
)
SHORT = DIALOGUE.replace(b"x" * 2100, b"xx").replace(b"y" * 1200, b"yy")
LINES = st.sampled_from([line + b"\r\n" for line in DIALOGUE.split(b"\r\n")])
OCTETS = st.one_of(
    st.binary(max_size=12),
    LINES,
    st.sampled_from(
        [b"\r", b"\n", b"\0", b".", b"\r\n", b".\r\n", b"\r\n.\r\n", b" ", b"DATA\r\n"]
    ),
    st.integers(0, 30).map(lambda count: b"BDAT %d LAST\r\n" % count),
)
INPUT = st.lists(OCTETS, max_size=40).map(b"".join)
OPENING = st.sampled_from(
    [b"", b"EHLO c\r\n", b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n", DIALOGUE[:70]]
)
STRICT = SmtpSettings(HOST, 300, 2, errors=5)
ALL = [PLAIN, REPAIR, LMTP, TLS, STRICT]


@pytest.mark.slow
@pytest.mark.parametrize("which", [PLAIN, REPAIR])
def test_one_dialogue_cut_at_every_place_gives_the_same(which: SmtpSettings) -> None:
    whole = run(which, DIALOGUE)
    assert len([event for event in whole[0] if isinstance(event, EndOfMessage)]) >= 2
    assert whole[1].endswith(b"221 2.0.0 Bye\r\n")
    for at in range(0, len(DIALOGUE), 1 if which is PLAIN else 7):
        assert run(which, DIALOGUE[:at], DIALOGUE[at:]) == whole
    assert run(which, *single(DIALOGUE)) == whole


@pytest.mark.slow
def test_three_pieces_give_the_same() -> None:
    octets = SHORT[:300]
    whole = run(PLAIN, octets)
    for first in range(60, len(octets), 3):
        for second in range(first, len(octets), 11):
            pieces = (octets[:first], octets[first:second], octets[second:])
            assert run(PLAIN, *pieces) == whole


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(st.sampled_from(ALL), OPENING, INPUT, st.integers(1, 9))
def test_any_input_gives_the_same_whole_and_cut(
    which: SmtpSettings, opening: bytes, rest: bytes, step: int
) -> None:
    octets = opening + rest
    if which is TLS and b"STARTTLS" in octets.upper():
        return  # octets in the clear after STARTTLS are judged by when they arrive
    whole = run(which, octets)
    assert run(which, *single(octets)) == whole
    assert run(which, *(octets[i : i + step] for i in range(0, len(octets), step))) == whole


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(st.integers(0, len(SHORT) - 1), st.binary(max_size=4), st.integers(0, 4))
def test_a_mutated_dialogue_gives_the_same_whole_and_cut(at: int, new: bytes, cut: int) -> None:
    octets = SHORT[:at] + new + SHORT[at + cut :]
    assert run(PLAIN, *single(octets)) == run(PLAIN, octets)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(INPUT)
def test_what_is_stored_can_be_sent_over_pop3_as_it_is(rest: bytes) -> None:
    session = Session(REPAIR)
    session.send(b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n", rest, b"\r\n.\r\n")
    for message in session.messages:
        assert (b"\r\n" + message).find(b"\r\n.\r\n") == len(message) - 3
        assert message.count(b"\r") == message.count(b"\n") == message.count(b"\r\n")
    for event in session.events:
        if isinstance(event, EndOfMessage):
            assert event.octets <= PLAIN.message_size


def test_every_reply_is_a_line_of_a_code_and_text() -> None:
    _, octets, _ = run(PLAIN, DIALOGUE)
    for line in octets.split(b"\r\n")[:-1]:
        assert line[:3].isdigit()
        assert line[3:4] in b" -"
        assert line.isascii()
