"""POP3: the maildrop's commands, deletion marks, ends of sessions, limits, and answers."""

from __future__ import annotations

import pytest

from metad.protocol.pop3.lines import KEPT
from metad.protocol.pop3.machine import (
    ListMessages,
    Login,
    Pop3,
    Pop3Settings,
    Quit,
    Retrieve,
    Top,
)
from metad.protocol.pop3.table import OUTPUT_LIMIT
from tests.support.pop3_session import MESSAGES, OPEN, Drop, Session, logged_in, single


def retrieving() -> Pop3:
    """A machine with a Retrieve that waits for its answer."""
    machine = logged_in().machine
    machine.receive(b"RETR 1\r\n")
    assert machine.next_event() == Retrieve(1)
    return machine


def topping(lines: bytes = b"0") -> Pop3:
    machine = logged_in().machine
    machine.receive(b"TOP 1 " + lines + b"\r\n")
    assert machine.next_event() == Top(1, int(lines))
    return machine


# -- the maildrop ---------------------------------------------------------------------------


def test_the_listings_say_numbers_sizes_and_uids() -> None:
    session = logged_in()
    sizes = [session.drop.size(n) for n in (1, 2, 3)]
    assert session.send(b"STAT\r\n") == b"+OK 3 %d\r\n" % sum(sizes)
    assert session.send(b"LIST\r\n") == (
        b"+OK 3 messages (%d octets)\r\n1 %d\r\n2 %d\r\n3 %d\r\n.\r\n" % (sum(sizes), *sizes)
    )
    assert session.send(b"LIST 2\r\n") == b"+OK 2 %d\r\n" % sizes[1]
    assert session.send(b"UIDL\r\n") == b"+OK\r\n1 uid1\r\n2 uid2\r\n3 uid3\r\n.\r\n"
    assert session.send(b"UIDL 3\r\n") == b"+OK 3 uid3\r\n"
    assert session.send(b"NOOP\r\n") == b"+OK\r\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", [b"LIST\r\n", b"UIDL\r\n"])
def test_a_listing_of_a_large_mailbox_comes_in_pieces(command: bytes) -> None:
    """Regression: with memory = "8MiB", a UIDL of 213,000 messages dropped its client, and
    others."""
    drop = Drop([MESSAGES[0]] * 213_000)
    machine = logged_in(drop=drop).machine
    machine.receive(command + b"NOOP\r\n")
    answer, most = [], 0
    while True:
        assert machine.next_event() is None
        output = machine.take_output()
        if not output:
            break
        most = max(most, sum(map(len, output)))
        answer += output
    lines = b"".join(answer).splitlines()
    assert most < 2 * OUTPUT_LIMIT
    assert len(lines) == 213_000 + 3
    assert lines[-2:] == [b".", b"+OK"]
    assert lines[213_000].startswith(b"213000 ")


def test_a_listing_is_asked_for_once_it_is_needed() -> None:
    drop = Drop()
    drop.is_listed = False
    session = logged_in(drop=drop)
    machine = session.machine
    assert session.send(b"STAT\r\nNOOP\r\nRSET\r\n").startswith(b"+OK 3 78\r\n+OK\r\n")
    for command in (b"LIST\r\n", b"UIDL 1\r\n", b"RETR 1\r\n", b"TOP 1 0\r\n", b"DELE 1\r\n"):
        machine.receive(command)
        assert isinstance(machine.next_event(), ListMessages), command
        assert machine.next_event() is None
        assert machine.take_output() == []
        machine.refused("[SYS/TEMP] no")
        assert machine.next_event() is None
        assert machine.take_output() == [b"-ERR [SYS/TEMP] no\r\n"]
    machine.receive(b"RETR 2\r\nDELE 2\r\n")
    assert isinstance(machine.next_event(), ListMessages)
    drop.is_listed = True
    machine.listed()
    assert machine.next_event() == Retrieve(2)
    machine.message([MESSAGES[1]])
    assert machine.next_event() is None
    assert machine.take_output()[-1] == b"+OK message deleted\r\n"


def test_an_empty_maildrop() -> None:
    session = logged_in(drop=Drop(()))
    assert session.send(b"STAT\r\n") == b"+OK 0 0\r\n"
    assert session.send(b"LIST\r\n") == b"+OK 0 messages (0 octets)\r\n.\r\n"
    assert session.send(b"UIDL\r\n") == b"+OK\r\n.\r\n"
    assert session.send(b"RETR 1\r\n") == b"-ERR no such message\r\n"


def test_retr_gives_the_exact_size_and_the_stored_bytes() -> None:
    session = logged_in()
    for number, message in enumerate(MESSAGES, 1):
        reply = session.send(b"RETR %d\r\n" % number)
        assert reply == b"+OK %d octets\r\n" % session.drop.size(number) + message
        unstuffed = reply.split(b"\r\n", 1)[1].replace(b"\r\n..", b"\r\n.").removesuffix(b".\r\n")
        assert len(unstuffed) == session.drop.size(number)


@pytest.mark.parametrize("verb", [b"RETR %d", b"TOP %d 1", b"LIST %d", b"UIDL %d", b"DELE %d"])
@pytest.mark.parametrize("number", [0, 4, 9_999_999_999])
def test_a_message_that_is_not_there_is_refused(verb: bytes, number: int) -> None:
    session = logged_in()
    assert session.send(verb % number + b"\r\n") == b"-ERR no such message\r\n"
    assert session.events == [Login("bob@example.org", b"secret")]


def test_deleted_messages_are_skipped_and_refused_until_rset() -> None:
    session = logged_in()
    before = [session.send(c) for c in (b"STAT\r\n", b"LIST\r\n", b"UIDL\r\n")]
    assert session.send(b"DELE 2\r\n").startswith(b"+OK")
    for command in (b"RETR 2", b"TOP 2 0", b"LIST 2", b"UIDL 2", b"DELE 2"):
        assert session.send(command + b"\r\n") == b"-ERR that message is deleted\r\n"
    rest = session.drop.size(1) + session.drop.size(3)
    assert session.send(b"STAT\r\n") == b"+OK 2 %d\r\n" % rest
    assert b"\r\n2 " not in session.send(b"LIST\r\n")
    assert session.send(b"UIDL\r\n") == b"+OK\r\n1 uid1\r\n3 uid3\r\n.\r\n"
    assert session.send(b"RSET\r\n").startswith(b"+OK 3 messages")
    assert [session.send(c) for c in (b"STAT\r\n", b"LIST\r\n", b"UIDL\r\n")] == before


def test_quit_carries_the_marks_in_order_and_none_that_rset_took_back() -> None:
    session = logged_in()
    session.send(b"DELE 2\r\nRSET\r\nDELE 3\r\nDELE 1\r\nQUIT\r\n")
    assert session.events[-1] == Quit([1, 3])


@pytest.mark.parametrize("end", ["eof", "fail", "drop"])
def test_a_connection_that_drops_deletes_nothing(end: str) -> None:
    session = logged_in()
    session.send(b"DELE 1\r\nQUIT")  # the line's end never arrives
    if end == "eof":
        session.eof()
        assert session.machine.closed
    elif end == "fail":
        session.machine.fail("[SYS/TEMP] idle for too long")
        session.pump()
    assert not [e for e in session.events if isinstance(e, Quit)]


# -- TOP ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "lines", "answer"),
    [
        (1, 0, b"Subject: one\r\n\r\n.\r\n"),
        (1, 1, b"Subject: one\r\n\r\nfirst\r\n.\r\n"),
        (1, 2, MESSAGES[0]),
        (1, 99, MESSAGES[0]),
        (2, 1, MESSAGES[1]),
        (3, 0, MESSAGES[2]),
        (3, 5, MESSAGES[2]),
    ],
)
def test_top_gives_the_header_and_so_many_lines(number: int, lines: int, answer: bytes) -> None:
    assert logged_in().send(b"TOP %d %d\r\n" % (number, lines)) == b"+OK\r\n" + answer


def test_top_asks_for_no_more_bytes_than_it_needs() -> None:
    machine = topping()
    given = iter([b"A: b\r\n", b"\r\nbody\r\n", b"never read\r\n.\r\n"])
    machine.take_output()
    machine.top([next(given)])
    assert not machine.top_done
    assert machine._streaming
    machine.top(given)
    assert machine.top_done
    assert not machine._streaming
    assert b"".join(machine.take_output()) == b"+OK\r\nA: b\r\n\r\n.\r\n"
    assert next(given) == b"never read\r\n.\r\n"


# -- answers --------------------------------------------------------------------------------


def test_commands_behind_an_unanswered_event_wait_in_order() -> None:
    machine = retrieving()
    machine.take_output()
    machine.receive(b"NOOP\r\nRETR 2\r\n")
    assert machine.next_event() is None
    assert machine.take_output() == []
    assert machine.buffered == len(b"NOOP\r\nRETR 2\r\n")
    machine.message([MESSAGES[0]])
    assert machine.next_event() == Retrieve(2)
    assert b"".join(machine.take_output()).endswith(b"\r\n.\r\n+OK\r\n")


def test_a_message_may_come_in_pieces() -> None:
    machine = retrieving()
    machine.take_output()
    machine.message_begin()
    machine.receive(b"NOOP\r\n")
    for piece in single(MESSAGES[0]):
        machine.message_chunk(piece)
        assert machine.next_event() is None
    machine.message_end()
    assert machine.next_event() is None
    head, rest = b"".join(machine.take_output()).split(b"\r\n", 1)
    assert head.startswith(b"+OK ")
    assert rest == MESSAGES[0] + b"+OK\r\n"


def test_a_refused_message_is_an_error_and_the_session_goes_on() -> None:
    for machine in (retrieving(), topping()):
        machine.take_output()
        machine.refused("[SYS/PERM] this message is damaged in the store")
        machine.receive(b"NOOP\r\n")
        assert machine.next_event() is None
        assert b"".join(machine.take_output()) == (
            b"-ERR [SYS/PERM] this message is damaged in the store\r\n+OK\r\n"
        )


def test_a_login_may_be_refused_with_a_response_code() -> None:
    machine = Pop3(OPEN)
    machine.receive(b"USER a\r\nPASS b\r\n")
    machine.next_event()
    machine.take_output()
    machine.login_failed("[IN-USE] mailbox is open in another session")
    assert machine.take_output() == [b"-ERR [IN-USE] mailbox is open in another session\r\n"]


def test_a_quit_whose_deletions_fail_says_so_and_ends() -> None:
    machine = logged_in().machine
    machine.receive(b"QUIT\r\nNOOP\r\n")
    assert machine.next_event() == Quit([])
    machine.quit_failed()
    assert machine.take_output() == [b"-ERR [SYS/TEMP] some deleted messages not removed\r\n"]
    assert machine.closed
    assert machine.next_event() is None


def test_an_answer_that_no_event_asked_for_is_a_bug() -> None:
    idle = logged_in().machine
    retrieve = retrieving()
    begun = retrieving()
    begun.message_begin()
    for call in (
        lambda: idle.login_ok(Drop()),
        idle.login_failed,
        lambda: idle.message([b""]),
        idle.message_begin,
        lambda: idle.message_chunk(b""),
        idle.message_end,
        lambda: idle.top([]),
        lambda: idle.refused(""),
        idle.quit_done,
        idle.quit_failed,
        lambda: retrieve.top([]),
        retrieve.quit_done,
        lambda: begun.refused(""),
        lambda: begun.top([b""]),
        lambda: begun.message([b""]),
    ):
        with pytest.raises(RuntimeError):
            call()


def test_a_late_answer_after_the_end_goes_nowhere() -> None:
    for event, late in (
        (b"USER a\r\nPASS b\r\n", lambda m: m.login_ok(Drop())),
        (b"USER a\r\nPASS b\r\n", lambda m: m.login_failed()),
    ):
        machine = Pop3(OPEN)
        machine.receive(event)
        assert isinstance(machine.next_event(), Login)
        machine.fail("too slow")
        machine.take_output()
        late(machine)
        assert machine.take_output() == []
        assert not machine.authorized
    for machine in (retrieving(), topping()):
        machine.fail("too slow")
        machine.take_output()
        machine.message_begin()
        machine.message_chunk(b"x")
        machine.message_end()
        machine.top([b"x"])
        machine.refused("")
        machine.quit_done()
        machine.quit_failed()
        assert machine.take_output() == []


# -- ends and limits ------------------------------------------------------------------------


def test_fail_says_why_once_and_ends() -> None:
    session = logged_in()
    session.machine.receive(b"NOOP\r\n")
    session.machine.fail("[SYS/TEMP] service shutting down")
    session.machine.fail("again")
    assert session.send(b"STAT\r\n") == b"-ERR [SYS/TEMP] service shutting down\r\n"
    assert session.machine.closed
    assert session.machine.buffered == 0


def test_fail_within_a_message_adds_nothing_that_could_pass_for_its_end() -> None:
    machine = retrieving()
    machine.message_begin()
    machine.message_chunk(b"Subject: one\r\n")
    machine.fail("damaged")
    assert machine.closed
    assert machine.take_output()[-1] == b"Subject: one\r\n"


def test_commands_sent_before_the_client_half_closed_are_answered() -> None:
    session = Session()
    session.machine.receive(b"USER bob\r\nPASS secret\r\nDELE 1\r\nQUIT\r\n")
    session.eof()
    assert session.events[-1] == Quit([1])
    assert session.octets.endswith(b"+OK metad signing off\r\n")
    assert session.machine.closed


def test_too_many_errors_end_the_session() -> None:
    session = Session(Pop3Settings("mx.example.org", plaintext=True, errors=3))
    replies = session.send(b"X\r\n" * 10)
    assert replies == b"-ERR unknown command\r\n" * 2 + b"-ERR too many errors\r\n"
    assert session.machine.closed


def test_messages_that_are_not_there_are_no_errors_that_count() -> None:
    session = logged_in()
    session.send(b"RETR 9\r\n" * 100)
    assert not session.machine.closed


def test_a_line_that_ends_in_lf_alone_was_refused() -> None:
    session = Session()
    session.send(b"USER bob\nPASS secret\n")
    assert session.events == [Login("bob", b"secret")]
    assert session.send(b"NOOP\nSTAT\r\nDELE 1\n").count(b"+OK") == 3
    assert session.send(b"NOOP\r\r\n") == b"-ERR a line with a NUL or bare CR\r\n"
    assert session.send(b"\n") == b"-ERR unknown command\r\n"


def test_lf_sessions_are_the_same_at_every_cut() -> None:
    octets = b"USER bob\nAUTH PLAIN\nAGJvYgBzZWNyZXQ=\nLIST\r\nRETR 2\nQUIT\n"
    whole = Session()
    whole.send(octets)
    assert whole.machine.closed
    for at in range(len(octets)):
        session = Session()
        session.send(octets[:at], octets[at:])
        assert (session.events, session.octets) == (whole.events, whole.octets)


@pytest.mark.slow
def test_a_kept_remainder_is_copied_out_of_its_buffer() -> None:
    session = logged_in()
    session.send(b"NOOP\r\n" * 30_000 + b"X")
    assert session.machine.buffered == 1
    assert len(session.machine._lines._input) <= KEPT
    assert session.send(b"\r\n") == b"-ERR unknown command\r\n"


def test_a_command_line_of_255_bytes_is_taken_and_of_256_refused() -> None:
    session = Session()
    name = b"x" * (255 - len(b"USER \r\n"))
    assert session.send(b"USER " + name + b"\r\n").startswith(b"+OK")
    assert session.send(b"USER " + name + b"x\r\n") == b"-ERR line too long\r\n"
    assert session.send(b"USER bob\r\n").startswith(b"+OK")


def test_an_endless_line_ends_the_session_in_bounded_memory() -> None:
    session = Session()
    for _ in range(1000):
        session.send(b"x" * 100)
        assert session.machine.buffered <= 255
    assert session.octets.endswith(b"-ERR line too long\r\n")
    assert session.machine.closed


@pytest.mark.slow
def test_queued_output_is_bounded_by_asking_again() -> None:
    session = logged_in(drop=Drop((b"A: b\r\n\r\n.\r\n",) * 1000))
    machine = session.machine
    listing = session.send(b"LIST\r\n")
    machine.receive(b"LIST\r\n" * 1000)
    answers, output = b"", b" "
    while output:
        assert machine.next_event() is None
        output = b"".join(machine.take_output())
        assert len(output) < OUTPUT_LIMIT + len(listing)
        answers += output
    assert answers == listing * 1000
