"""Mail goes in by SMTP and comes out by POP3, octet by octet."""

import poplib
import smtplib
import socket

import pytest

from tests.support.clients import (
    AWKWARD,
    MANY,
    SENDER,
    Pop3Line,
    SmtpLine,
    bodies,
    deliver,
    digest,
    fetch,
    message,
    random_body,
    stuffed,
    without_trace,
)
from tests.support.hub import PASSWORD, Hub, address


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\r\n",
        b"one line\r\n",
        b".\r\n",
        b"..\r\n.\r\n",
        b".\r\n" * 1000,
        AWKWARD,
        bytes(octet for octet in range(1, 256) if octet not in b"\r\n") + b"\r\n",
        b"x" * 100_000 + b"\r\n",
        b"\r\n" * 50_000,
    ],
    ids=lambda body: f"{len(body)} octets {body[:6]!r}",
)
def test_a_message_comes_out_as_it_went_in(hub, mailbox, body):
    sent = message(body)
    deliver(hub, sent, mailbox)
    (found,) = bodies(hub, mailbox)
    assert digest(found) == digest(sent)


def test_an_empty_message_is_only_our_trace(hub, mailbox):
    """DATA, then the dot at once: no header, so an empty line ends the trace."""
    deliver(hub, b"", mailbox)
    assert bodies(hub, mailbox) == [b"\r\n"]


def test_a_message_without_a_header_is_not_folded_into_our_trace(hub, mailbox):
    deliver(hub, b" folded?\r\nno\r\n", mailbox)
    assert bodies(hub, mailbox) == [b"\r\n folded?\r\nno\r\n"]


def test_random_messages_come_out_in_the_order_they_went_in(hub, mailbox, dice):
    sent = [message(random_body(dice, 20_000)) for _ in range(30)]
    with SmtpLine(hub) as smtp:
        for one in sent:
            smtp.deliver(one, mailbox)
    assert [digest(one) for one in bodies(hub, mailbox)] == [digest(one) for one in sent]


def test_bytes_that_come_one_by_one_make_the_same_message(hub, mailbox):
    sent = message(b".\r\n..a\r\n.b\r\n")
    with SmtpLine(hub) as smtp:
        smtp.say(f"MAIL FROM:<{SENDER}>")
        smtp.say(f"RCPT TO:<{address(mailbox)}>")
        smtp.say("DATA", b"354")
        wire = stuffed(sent)
        for place in range(len(wire)):
            smtp.send(wire[place : place + 1])
        smtp.reply(b"250")
    assert bodies(hub, mailbox) == [sent]


def test_smtplib_sends_what_poplib_fetches(hub, mailbox, monkeypatch):
    monkeypatch.setattr(poplib, "_MAXLINE", 1 << 20)
    sent = message()
    with smtplib.SMTP("127.0.0.1", hub.smtp_port) as smtp:
        assert smtp.sendmail(SENDER, [address(mailbox)], sent, ["BODY=8BITMIME"]) == {}
    pop = poplib.POP3("127.0.0.1", hub.pop3_port)
    pop.user(address(mailbox))
    pop.pass_(PASSWORD)
    assert pop.stat()[0] == 1
    lines = pop.retr(1)[1]
    assert pop.quit().startswith(b"+OK")
    found = b"".join(line + b"\r\n" for line in lines)
    assert digest(without_trace(found, recipient=mailbox)) == digest(sent)


def test_a_hundred_recipients_get_one_message_each(hub):
    sent = message()
    deliver(hub, sent, *MANY)
    for name in MANY:
        (found,) = fetch(hub, name, delete=True)
        assert digest(without_trace(found, recipient=name)) == digest(sent)
        assert b"\tfor <" not in found


def test_a_recipient_named_twice_or_by_tag_gets_one_message(hub, mailbox):
    sent = message()
    deliver(hub, sent, mailbox, mailbox, f"{mailbox}+tag")
    assert len(fetch(hub, mailbox)) == 1


def test_pipelined_transactions_are_each_answered_and_kept(hub, mailbox):
    sent = [message(b"%d\r\n" % number) for number in range(20)]
    with SmtpLine(hub) as smtp:
        for one in sent:
            smtp.send(f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{address(mailbox)}>\r\nDATA\r\n".encode())
            assert [smtp.reply()[:3], smtp.reply()[:3]] == [b"250", b"250"]
            smtp.reply(b"354")
            smtp.send(stuffed(one))
            smtp.reply(b"250")
    assert bodies(hub, mailbox) == sent


def test_chunks_make_the_same_message_as_data(hub, mailbox):
    sent = message()
    with SmtpLine(hub) as smtp:
        smtp.say(f"MAIL FROM:<{SENDER}>")
        smtp.say(f"RCPT TO:<{address(mailbox)}>")
        cut = len(sent) // 2
        for octets, last in ((sent[:cut], ""), (sent[cut:], " LAST")):
            smtp.send(f"BDAT {len(octets)}{last}\r\n".encode() + octets)
            smtp.reply(b"250")
    assert bodies(hub, mailbox) == [sent]


def test_top_gives_the_header_and_as_many_lines_as_asked(hub, mailbox):
    deliver(hub, message(b"one\r\n..two\r\nthree\r\n"), mailbox)
    (whole,) = fetch(hub, mailbox)
    header = whole[: whole.index(b"\r\n\r\n") + 4]
    with Pop3Line(hub) as pop:
        pop.log_in(mailbox)
        assert pop.listing("TOP 1 0") == header + b".\r\n"
        assert pop.listing("TOP 1 2") == header + b"one\r\n...two\r\n.\r\n"


def test_twenty_megabytes_come_out_as_they_went_in(dice):
    body = (dice.randbytes(997).translate(_PRINTABLE) + b"\r\n") * 20_000
    sent = message(body)
    with Hub(["alice"], workers=1, log_size="96MiB") as hub:
        deliver(hub, sent, "alice")
        (found,) = bodies(hub, "alice")
    assert digest(found) == digest(sent)


_PRINTABLE = bytes(32 + octet % 95 for octet in range(256))


@pytest.mark.parametrize(
    ("recipient", "code"),
    [
        ("nobody@example.test", b"550 5.1.1"),
        ("someone@foreign.test", b"550 5.7.1"),
        ("no-domain", b"501 5.1.3"),
    ],
)
def test_mail_for_an_unknown_user_is_refused(hub, recipient, code):
    with SmtpLine(hub) as smtp:
        smtp.say(f"MAIL FROM:<{SENDER}>")
        smtp.say(f"RCPT TO:<{recipient}>", code)


def test_postmaster_is_taken_with_and_without_a_domain(hub):
    with SmtpLine(hub) as smtp:
        smtp.say(f"MAIL FROM:<{SENDER}>")
        smtp.say("RCPT TO:<postmaster>", b"250")
        smtp.say("RCPT TO:<Postmaster@example.test>", b"250")


def test_a_bare_line_feed_is_refused_and_the_session_goes_on(hub, mailbox):
    sent = message()
    with SmtpLine(hub) as smtp:
        smtp.deliver(message(b"bare\nline feed\r\n"), mailbox, code=b"550 5.5.2")
        smtp.deliver(sent, mailbox)
    assert bodies(hub, mailbox) == [sent]


def test_a_message_over_the_limit_is_refused_and_not_kept(hub, mailbox):
    with SmtpLine(hub) as smtp:
        smtp.say(f"MAIL FROM:<{SENDER}> SIZE=999999999", b"552")
        smtp.deliver(message(b"x" * 70 + b"\r\n" * (2 << 20)), mailbox, code=b"552 5.3.4")
    assert fetch(hub, mailbox) == []


def test_a_message_cut_off_by_the_connection_is_not_kept(hub, mailbox):
    with SmtpLine(hub) as smtp:
        smtp.say(f"MAIL FROM:<{SENDER}>")
        smtp.say(f"RCPT TO:<{address(mailbox)}>")
        smtp.say("DATA", b"354")
        smtp.send(b"Subject: half\r\n\r\nof a message\r\n")
        smtp.socket.shutdown(socket.SHUT_WR)
        assert smtp.input.read() == b""
    assert fetch(hub, mailbox) == []
