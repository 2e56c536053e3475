"""POP3 sessions against a real hub: one per mailbox, and which ones delete."""

from contextlib import ExitStack

import pytest

from tests.support.clients import (
    Pop3Line,
    SmtpLine,
    bodies,
    deliver,
    fetch,
    message,
    stranger,
    unique_ids,
    wait_for_login,
)
from tests.support.hub import PASSWORD, address


def test_a_dropped_connection_deletes_nothing(hub, mailbox):
    sent = message()
    deliver(hub, sent, mailbox)
    with Pop3Line(hub) as pop:
        pop.log_in(mailbox)
        pop.say("DELE 1")
        assert pop.count() == 0
    wait_for_login(hub, mailbox)
    assert bodies(hub, mailbox) == [sent]


def test_rset_takes_deletions_back(hub, mailbox):
    deliver(hub, message(), mailbox)
    with Pop3Line(hub) as pop:
        pop.log_in(mailbox)
        pop.say("DELE 1")
        pop.say("RSET")
        pop.say("QUIT")
    assert len(fetch(hub, mailbox)) == 1


def test_quit_deletes_what_was_marked_and_nothing_else(hub, mailbox):
    sent = [message(b"%d\r\n" % number) for number in range(5)]
    for one in sent:
        deliver(hub, one, mailbox)
    before = unique_ids(hub, mailbox)
    with Pop3Line(hub) as pop:
        pop.log_in(mailbox)
        pop.say("DELE 2")
        pop.say("DELE 4")
        pop.say("QUIT")
    assert bodies(hub, mailbox) == [sent[0], sent[2], sent[4]]
    assert unique_ids(hub, mailbox) == [before[0], before[2], before[4]]


def test_what_comes_during_a_session_is_seen_in_the_next(hub, mailbox):
    deliver(hub, message(), mailbox)
    with Pop3Line(hub) as pop:
        pop.log_in(mailbox)
        deliver(hub, message(), mailbox)
        assert pop.count() == 1
        pop.say("DELE 1")
        pop.say("QUIT")
    assert len(fetch(hub, mailbox)) == 1


@pytest.mark.long
def test_one_session_per_mailbox_across_all_workers(hub, mailbox):
    """Enough connections for both workers to have some: the kernel distributes them."""
    with ExitStack() as stack:
        holder = stack.enter_context(Pop3Line(hub))
        holder.log_in(mailbox)
        others = []  # type: ignore[var-annotated]
        while not served_by_all(hub):
            assert len(others) < 200
            others += [stack.enter_context(Pop3Line(hub)) for _ in range(8)]
        for other in others:  # all at once: each answer is held back for seconds
            other.say(f"USER {address(mailbox)}")
            other.send(f"PASS {PASSWORD}\r\n".encode())
        assert all(other.line().startswith(b"-ERR [IN-USE]") for other in others)
        holder.say("QUIT")
        others[0].log_in(mailbox)


def test_in_use_is_reported_only_after_the_right_password(hub, mailbox):
    with Pop3Line(hub) as holder, Pop3Line(hub, stranger()) as other:
        holder.log_in(mailbox)
        answer = other.log_in(mailbox, password="wrong", answer=b"-ERR")
        assert b"[IN-USE]" not in answer


def test_a_wrong_password_and_an_unknown_user_look_the_same(hub, mailbox):
    names = (mailbox, "nobody-of-that-name", "postmaster")
    with ExitStack() as stack:
        lines = [stack.enter_context(Pop3Line(hub, stranger())) for _ in names]
        for line, name in zip(lines, names, strict=True):
            line.say(f"USER {address(name)}")
            line.send(b"PASS wrong\r\n")  # all at once: each answer is held back for a second
        answers = {line.line() for line in lines}
    assert len(answers) == 1
    assert answers.pop().startswith(b"-ERR [AUTH]")


@pytest.mark.long
def test_a_thousand_messages_come_out_pipelined(hub, mailbox):
    number = 1000
    with SmtpLine(hub) as smtp:
        for _ in range(number):
            smtp.deliver(message(b"x\r\n"), mailbox)
    with Pop3Line(hub) as pop:
        pop.log_in(mailbox)
        assert pop.count() == number
        pop.send(b"".join(b"RETR %d\r\n" % (one + 1) for one in range(number)))
        found = set()
        for _ in range(number):
            assert pop.line().startswith(b"+OK")
            while (line := pop.line()) != b".":
                if line.startswith(b"Message-ID:"):
                    found.add(line)
        assert len(found) == number
        pop.send(b"".join(b"DELE %d\r\n" % (one + 1) for one in range(number)) + b"QUIT\r\n")
        assert all(pop.line().startswith(b"+OK") for _ in range(number + 1))
    assert fetch(hub, mailbox) == []


def served_by_all(hub):
    return all(worker["pop3_open"] for worker in hub.status()["workers"])
