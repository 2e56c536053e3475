"""POP3 on any input: nothing raises, and how it was cut makes no difference."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metad.protocol.pop3.machine import Quit
from tests.support.pop3_session import GUARDED, OPEN, Session, single

DIALOGUE = (
    b"CAPA\r\nUSER bob\r\nPASS wrong\r\nAUTH PLAIN\r\nAGJvYgBzZWNyZXQ=\r\nSTAT\r\nLIST\r\nUIDL\r\n"
    b"RETR 1\r\nTOP 2 1\r\nDELE 2\r\nRETR 2\r\nnoop\nRSET\r\nDELE 3\r\nLIST 3\r\n"
    + b"x" * 300
    + b"\r\nUIDL\r\nQUIT\r\nSTAT\r\n"
)
LINES = st.sampled_from([line + b"\r\n" for line in DIALOGUE.split(b"\r\n")])
OCTETS = st.one_of(
    st.binary(max_size=12),
    LINES,
    st.sampled_from([b"\r", b"\n", b"\0", b"\r\n", b" ", b"x" * 256, b"RETR ", b"TOP 1 "]),
)
INPUT = st.lists(OCTETS, max_size=40).map(b"".join)


def run(settings_: object, *pieces: bytes) -> tuple[list[object], bytes, bool]:
    session = Session(settings_)  # type: ignore[arg-type]
    session.send(*pieces)
    session.eof()
    return session.events, session.octets, session.machine.closed  # type: ignore[return-value]


@pytest.mark.slow
def test_one_dialogue_cut_at_every_place_gives_the_same() -> None:
    whole = run(OPEN, DIALOGUE)
    assert whole[0][-1] == Quit([3])
    for at in range(len(DIALOGUE)):
        assert run(OPEN, DIALOGUE[:at], DIALOGUE[at:]) == whole
    assert run(OPEN, *single(DIALOGUE)) == whole


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(INPUT)
def test_any_input_whole_or_byte_by_byte_gives_the_same(octets: bytes) -> None:
    login = b"USER bob\r\nPASS secret\r\n"
    for prefix in (b"", login):
        whole = run(OPEN, prefix + octets)
        assert whole == run(OPEN, *single(prefix + octets))
        assert whole[2]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(INPUT)
def test_no_input_logs_in_where_plaintext_is_refused(octets: bytes) -> None:
    events, _, closed = run(GUARDED, octets)
    assert events == []
    assert closed


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["DELE 1", "DELE 2", "DELE 3", "RSET", "LIST", "STAT", "X"])))
def test_marks_are_a_set_that_rset_empties(commands: list[str]) -> None:
    marked: set[int] = set()
    session = Session(OPEN)
    session.send(b"USER bob\r\nPASS secret\r\n")
    for command in commands:
        session.send(command.encode() + b"\r\n")
        if command == "RSET":
            marked.clear()
        elif command.startswith("DELE"):
            marked.add(int(command[5:]))
        if not session.machine.closed:
            assert session.send(b"STAT\r\n").startswith(b"+OK %d " % (3 - len(marked)))
    session.send(b"QUIT\r\n")
    if commands.count("X") < OPEN.errors:
        assert session.events[-1] == Quit(sorted(marked))
