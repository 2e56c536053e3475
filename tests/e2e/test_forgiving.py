"""Behaviour of all kinds of senders and readers, accepted or refused by a real hub as its manual
says."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.clients import SENDER, bodies, fetch, message, stranger
from tests.support.hub import HOSTNAME, PASSWORD, address
from tests.support.wide_hub import Pop3, WideHub, connect, pop3, smtp, wait_for_lines

SETTINGS = f'[pop3]\nmaster_users = ["{address("master")}"]\n'


@pytest.fixture(scope="module")
def hub() -> Iterator[WideHub]:
    names = ["ann", "bob", "cid", "dan", "eve", "master"]
    with WideHub(["smtp", "pop3", "lmtp"], names, SETTINGS, workers=2) as hub:
        yield hub


# --- SMTP -------------------------------------------------------------------------------------


def test_lmtp_data_after_refused_recipients_only_is_503(hub: WideHub) -> None:
    with smtp(hub, "lmtp", hello="LHLO") as client:
        client.say(f"MAIL FROM:<{SENDER}>")
        client.say(f"RCPT TO:<{address('nobody')}>", b"550")
        client.say("DATA", b"503")


@pytest.mark.parametrize(
    "name", ["postmaster", "Postmaster", f"postmaster@{HOSTNAME}", "postmaster@[127.0.0.1]"]
)
def test_postmaster_of_the_hub_itself_is_postmaster(hub: WideHub, name: str) -> None:
    with smtp(hub, "smtp") as client:
        client.say("MAIL FROM:<>")
        client.say(f"RCPT TO:<{name}>", b"250")
        client.say(f"RCPT TO:<ann@{HOSTNAME}>", b"550")


def test_an_mbox_separator_in_front_leaves_the_header_a_header(hub: WideHub) -> None:
    sent = b"From ann@example.org Sat Jan  3 01:05:34 1996\r\n" + message()
    with smtp(hub, "smtp") as client:
        client.deliver(sent, "ann")
    (found,) = fetch(hub, "ann", delete=True)
    header = found.partition(b"\r\n\r\n")[0]
    assert b"\r\nX-Mailbox-Line: From ann@example.org Sat Jan  3" in header
    assert b"\r\nSubject: for a test" in header


def test_smtputf8_of_a_refused_mail_does_not_outlive_it(hub: WideHub) -> None:
    with smtp(hub, "smtp") as client:
        client.say("MAIL FROM:<a@b.example> SMTPUTF8 SIZE=999999999", b"552")
        client.say(f"MAIL FROM:<{SENDER}>")
        client.say("RCPT TO:<rää@example.test>", b"5")
        client.say(f"RCPT TO:<{address('ann')}>")


def test_an_address_without_brackets_is_taken_unless_the_setting_is_strict(hub: WideHub) -> None:
    forms = (f"MAIL FROM:{SENDER}", f"MAIL FROM: <{SENDER}>", f"mail from: {SENDER}")
    with smtp(hub, "smtp") as client:
        for form in forms:
            client.say(form)
            client.say(f"RCPT TO:{address('ann')}")
            client.say("RSET")
    with WideHub(["smtp"], ["ann"], "[smtp]\nstrict = true\n", workers=1) as strict:
        with smtp(strict, "smtp") as client:
            for form in forms:
                client.say(form, b"501")
            client.say(f"MAIL FROM:<{SENDER}>")
        assert wait_for_lines(strict, f"argument=<FROM:{SENDER}>")


def test_a_client_that_tries_addresses_is_slowed_down(hub: WideHub) -> None:
    with smtp(hub, "smtp", "127.0.70.1") as client:
        client.say(f"MAIL FROM:<{SENDER}>")
        began = time.monotonic()
        for number in range(10):
            client.say(f"RCPT TO:<try{number}@example.test>", b"550")
        quick = time.monotonic() - began
        for number in range(4):  # each reply is followed by half a second
            client.say(f"RCPT TO:<more{number}@example.test>", b"550")
        assert time.monotonic() - began - quick > 1.4


# --- POP3 -------------------------------------------------------------------------------------


def test_a_mailbox_in_use_is_waited_for(hub: WideHub) -> None:
    """Two devices of one user poll at the same time: neither sees an error."""
    first = pop3(hub, "pop3", "127.0.71.1")
    first.log_in("bob")
    second = pop3(hub, "pop3", "127.0.71.2")
    leaving = threading.Timer(1.0, first.say, ["QUIT"])
    leaving.start()
    began = time.monotonic()
    second.log_in("bob")
    assert time.monotonic() - began > 0.7
    leaving.join()
    first.drop()
    second.drop()


@pytest.mark.long
def test_a_mailbox_that_stays_in_use_is_refused_in_the_end(hub: WideHub) -> None:
    with pop3(hub, "pop3", "127.0.71.3") as first:
        first.log_in("cid")
        with pop3(hub, "pop3", "127.0.71.4") as second:
            second.say(f"USER {address('cid')}")
            began = time.monotonic()
            second.say(f"PASS {PASSWORD}", b"-ERR [IN-USE]")
            assert time.monotonic() - began > 4


def test_a_master_user_opens_any_mailbox_and_the_log_says_so(hub: WideHub) -> None:
    with smtp(hub, "smtp") as sender:
        sender.deliver(message(), "dan")
    with pop3(hub, "pop3", "127.0.72.1") as client:
        client.say(f"USER {address('dan')}*{address('master')}")
        client.say(f"PASS {PASSWORD}")
        client.say("STAT", b"+OK 1 ")
        client.say("QUIT")
    (line,) = wait_for_lines(hub, "opened by a master user")
    assert f"user=<{address('dan')}>, master=<{address('master')}>" in line
    with pop3(hub, "pop3", "127.0.72.2") as client:  # the others are not master users
        client.say(f"USER {address('dan')}*{address('ann')}")
        client.say(f"PASS {PASSWORD}", b"-ERR [AUTH]")


def test_lines_in_lf_alone_are_taken_by_pop3(hub: WideHub) -> None:
    sent = message()
    with smtp(hub, "smtp") as sender:
        sender.deliver(sent, "eve")
    with Pop3(connect(hub.places["pop3"], "127.0.73.1")) as client:
        assert client.line().startswith(b"+OK")
        client.send(f"USER {address('eve')}\nPASS {PASSWORD}\nSTAT\nQUIT\n".encode())
        assert [client.line()[:3] for _ in range(4)] == [b"+OK"] * 4
        assert client.rest() == b""
    assert bodies(hub, "eve") == [sent]


@pytest.mark.parametrize(
    "name", ["admin", "a@b@c", "x y@example.test", '"', "@", "rää", "*", "a" * 200]
)
def test_a_name_that_is_no_address_is_refused_counted_and_logged_like_any_other(
    hub: WideHub, name: str
) -> None:
    """Regression: it was never answered, so guesses at such names were neither delayed nor
    counted."""
    with pop3(hub, "pop3", stranger()) as client:
        before = hub.status()["login_failures"]
        client.say(f"USER {name}")
        client.say("PASS wrong", b"-ERR [AUTH] authentication failed")
        assert hub.status()["login_failures"] == before + 1
        client.say("NOOP", b"-ERR")
    assert wait_for_lines(hub, f"user=<{name}>, tls=no, mech=PLAIN, reason=unknown user")
