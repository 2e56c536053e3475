"""The real rspamd, with Redis, configured as in docs/spam.md: how a hub handles its verdicts."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.support.clients import SmtpLine, fetch, in_time, stuffed, unstuffed
from tests.support.hub import HOSTNAME, address
from tests.support.rspamd_real import RealRspamd, root
from tests.support.wide_hub import Smtp, WideHub, connect

GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
DOMAIN = "good.example.test"
SOFT = "soft.example.test"
STRICT = "strict.example.test"
NEW = "new.example.test"
# Messages of each kind for the classifier to learn: min_learns of docs/spam.md.
LEARNED = 20
# Seconds that a greylisted sender must wait; the default is five minutes.
PAUSE = 2.0


class Signer:
    """A key pair, made and used by openssl."""

    def __init__(self, directory: Path) -> None:
        self._key = directory / "dkim.pem"
        openssl("genrsa", "-out", str(self._key), "2048")
        der = openssl("rsa", "-in", str(self._key), "-pubout", "-outform", "DER")
        self.public = base64.b64encode(der).decode()

    def signed(self, message: bytes) -> bytes:
        """With a DKIM signature, simple/simple (RFC 6376)."""
        head, _, body = message.partition(b"\r\n\r\n")
        names = [b"From", b"To", b"Subject"]
        fields = {line.partition(b":")[0]: line + b"\r\n" for line in head.split(b"\r\n")}
        digest = base64.b64encode(hashlib.sha256(body).digest())
        field = (
            b"DKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; d=%b; s=mail; h=%b; bh=%b; b="
            % (DOMAIN.encode(), b":".join(names), digest)
        )
        covered = b"".join(fields[name] for name in names) + field
        signature = openssl("dgst", "-sha256", "-sign", str(self._key), given=covered)
        return field + base64.b64encode(signature) + b"\r\n" + message


def openssl(*arguments: str, given: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *arguments], input=given, capture_output=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here (sh tools/test --full brings it)")
    return Signer(tmp_path_factory.mktemp("dkim"))


@pytest.fixture(scope="module")
def rspamd(signer: Signer) -> Iterator[RealRspamd]:
    base = root()
    if base is None:
        pytest.skip("rspamd is not here (sh tools/test --full brings it)")
    records = [
        (DOMAIN, "txt", "v=spf1 ip4:192.0.2.0/24 -all"),
        (DOMAIN, "a", "192.0.2.10"),
        (f"mx.{DOMAIN}", "a", "192.0.2.10"),
        ("10.2.0.192.in-addr.arpa", "ptr", f"mx.{DOMAIN}"),
        (SOFT, "txt", "v=spf1 ip4:192.0.2.77 ?all"),
        (SOFT, "a", "192.0.2.10"),
        (f"_dmarc.{DOMAIN}", "txt", "v=DMARC1; p=none"),
        (STRICT, "txt", "v=spf1 ip4:192.0.2.77 -all"),
        (STRICT, "a", "192.0.2.10"),
        (f"_dmarc.{STRICT}", "txt", "v=DMARC1; p=reject"),
        # The score of a new sender depends on these: without them it depends on DNS timeouts.
        *((NEW, kind, "") for kind in ("a", "aaaa", "mx", "txt")),
        ("9.113.0.203.in-addr.arpa", "ptr", ""),
        (f"_dmarc.{NEW}", "txt", ""),
        ("_dmarc.example.test", "txt", ""),
        (f"mail._domainkey.{DOMAIN}", "txt", f"v=DKIM1; k=rsa; p={signer.public}"),
    ]
    with RealRspamd(base, records, {"greylist.conf": f"timeout = {PAUSE:g};\n"}) as running:
        yield running


@pytest.fixture(scope="module")
def hub(rspamd: RealRspamd) -> Iterator[WideHub]:
    settings = (
        f'[filter]\nrspamd = "{rspamd.address}"\nfailure = "defer"\ndeadline = "20s"\n'
        "hostname = false\n"
    )
    names = ["ann", "ben", "cid", "dan", "eve", "fay", "gus", "hal", "ivy", "joe"]
    with WideHub(["proxied", "pop3", "smtp"], names, settings, workers=1) as hub:
        yield hub


def client(hub: WideHub, source: str = "192.0.2.10") -> Smtp:
    """From another network: rspamd exempts clients of local networks."""
    line = Smtp(connect(hub.places["proxied"]))
    line.send(f"PROXY TCP4 {source} 192.0.2.1 40000 25\r\n".encode())
    line.reply(b"220")
    line.say(f"EHLO mx.{DOMAIN}")
    return line


def mail(text: str, *, domain: str = DOMAIN, number: int = 1) -> bytes:
    return (
        f"From: Ann Sender <ann@{domain}>\r\nTo: <ben@example.test>\r\n"
        f"Subject: the minutes of our meeting\r\nDate: {formatdate()}\r\n"
        f"Message-ID: <{number}.{time.monotonic_ns()}@{domain}>\r\nMIME-Version: 1.0\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\n\r\n{text}\r\n"
    ).encode()


def send(line: Smtp, message: bytes, name: str, sender: str = f"ann@{DOMAIN}") -> bytes:
    line.say(f"MAIL FROM:<{sender}>")
    line.say(f"RCPT TO:<{address(name)}>")
    line.say("DATA", b"354")
    line.send(stuffed(message))
    return line.reply(b"")


def results(octets: bytes) -> str:
    unfolded = re.sub(rb"\r\n[ \t]", b" ", octets.partition(b"\r\n\r\n")[0])
    (found,) = re.findall(rb"(?m)^Authentication-Results: (.*?)\r$", unfolded + b"\r\n")
    return found.decode()


def test_gtube_is_refused(hub: WideHub) -> None:
    with client(hub) as line:
        reply = send(line, mail(GTUBE), "ann")
    assert reply.startswith(b"550 5.7.1 ")
    assert fetch(hub, "ann") == []


def test_results_of_spf_dkim_and_dmarc_are_in_the_message(hub: WideHub, signer: Signer) -> None:
    hub.run("user", "set", address("ben"), "--spam-mark", "none")
    with client(hub) as line:
        assert send(line, signer.signed(mail("Good morning")), "ben").startswith(b"250")
        tampered = signer.signed(mail("Good morning")).replace(b"Good morning", b"Good evening")
        assert send(line, tampered, "ben").startswith(b"250")
    good, bad = fetch(hub, "ben")
    assert results(good) == (
        f"{HOSTNAME}; spf=pass smtp.mailfrom=ann@{DOMAIN}; "
        f"dkim=pass header.d={DOMAIN} header.s=mail; "
        f"dmarc=pass (p=none) header.from={DOMAIN}; arc=none"
    )
    assert f"dkim=fail header.d={DOMAIN} header.s=mail" in results(bad)


def test_a_sender_of_whom_spf_says_nothing(hub: WideHub, signer: Signer) -> None:
    with client(hub) as line:
        message = signer.signed(mail("Good morning"))
        assert send(line, message, "cid", f"ann@{SOFT}").startswith(b"250")
    (got,) = fetch(hub, "cid")
    assert f"spf=neutral smtp.mailfrom=ann@{SOFT}" in results(got)


def test_a_sender_whom_spf_and_dmarc_disown(hub: WideHub) -> None:
    with client(hub, "192.0.2.10") as line:
        message = mail("Good morning", domain=STRICT)
        reply = accepted_in_time(hub, line, message, "fay", f"ann@{STRICT}")
    assert reply.startswith(b"250"), reply
    (got,) = fetch(hub, "fay")
    assert f"spf=fail smtp.mailfrom=ann@{STRICT}" in results(got)
    assert f"dmarc=fail (p=reject) header.from={STRICT}" in results(got)


def test_greylisting_is_seen_and_the_message_accepted_after_the_pause(hub: WideHub) -> None:
    """A score between greylist and reject, from a new sender."""
    message = mail("BUY cheap watches now!!! http://192.0.2.99/x.exe CLICK HERE", domain=NEW)
    with client(hub, "203.0.113.9") as line:
        first = time.monotonic()
        reply = send(line, message, "dan", f"x@{NEW}")
        assert reply.startswith(b"451 4.7.1 "), reply
        assert fetch(hub, "dan") == []
        reply = accepted_in_time(hub, line, message, "dan", f"x@{NEW}")
        waited = time.monotonic() - first
    assert reply.startswith(b"250"), reply
    assert waited >= PAUSE - 1  # rspamd counts whole seconds
    (got,) = fetch(hub, "dan")
    assert unstuffed_end(got).endswith(message)


def accepted_in_time(hub: WideHub, line: Smtp, message: bytes, name: str, sender: str) -> bytes:
    """The first reply that is not 451, after as many tries as greylisting takes."""
    replies: list[bytes] = []

    def is_answered() -> bool:
        replies.append(send(line, message, name, sender))
        return not replies[-1].startswith(b"451")

    in_time(is_answered)
    return replies[-1]


SPAM = "lottery winner claim your prize money transfer fee barrister deposit fund {}"
HAM = "minutes of the meeting on the bridge: concrete, scaffolding, drawings, planning {}"


def text_of(kind: str, number: int) -> str:
    return " ".join(kind.format(f"word{number}{n}") for n in range(10))


def deliver_text(line: SmtpLine, name: str, kind: str, number: int) -> None:
    line.say("MAIL FROM:<x@example.net>")
    line.say(f"RCPT TO:<{address(name)}>")
    line.say("DATA", b"354")
    line.send(stuffed(mail(text_of(kind, number), number=number)))
    line.reply(b"250")


def score(octets: bytes) -> float:
    (found,) = re.findall(rb"(?m)^X-Spam-Score: ([-0-9.]+)\r$", octets)
    return float(found)


def test_spam_and_ham_learned_from_a_mailbox_change_the_score(
    hub: WideHub, rspamd: RealRspamd
) -> None:
    options = ["--controller", rspamd.controller]
    with SmtpLine(hub) as line:  # from this machine, which rspamd does not greylist
        for number in range(LEARNED):
            deliver_text(line, "eve", SPAM, number)
        for number in range(LEARNED):
            deliver_text(line, "eve", HAM, number)
        before = {}
        for kind in (SPAM, HAM):
            deliver_text(line, "gus", kind, 1000)
            before[kind] = score(fetch(hub, "gus", delete=True)[0])
        spam = [str(number + 1) for number in range(LEARNED)]
        ham = [str(number + 1 + LEARNED) for number in range(LEARNED)]
        learned = hub.run("mail", "learn", "spam", address("eve"), *spam, *options).stdout
        assert learned == "".join(f"{one}: learned as spam\n" for one in spam)
        learned = hub.run("mail", "learn", "ham", address("eve"), *ham, *options).stdout
        assert learned == "".join(f"{one}: learned as ham\n" for one in ham)
        after = {}
        for kind in (SPAM, HAM):
            deliver_text(line, "gus", kind, 2000)
            after[kind] = score(fetch(hub, "gus", delete=True)[0])
    assert after[SPAM] > before[SPAM] + 2, (before, after)
    assert after[HAM] < before[HAM] - 1, (before, after)


def test_learning_what_is_known_or_not_there(hub: WideHub, rspamd: RealRspamd) -> None:
    with SmtpLine(hub) as line:
        deliver_text(line, "hal", SPAM, 3000)
    options = ["--controller", rspamd.controller]
    hub.run("mail", "learn", "spam", address("hal"), "1", *options)
    again = hub.run("mail", "learn", "spam", address("hal"), "1", *options)
    assert "already" in again.stdout
    known = hub.run("mail", "learn", "spam", address("hal"), "1", *options, "--json").stdout
    assert json.loads(known) == {"message": "1", "answer": again.stdout.strip().removeprefix("1: ")}
    missing = hub.run("mail", "learn", "spam", address("hal"), "9", *options, check=False)
    assert missing.returncode == 65
    nowhere = hub.run(
        "mail", "learn", "spam", address("hal"), "1", "--controller", "unix:/nowhere", check=False
    )
    assert nowhere.returncode == 69


def test_rspamd_killed_at_work_costs_no_message(hub: WideHub, rspamd: RealRspamd) -> None:
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(client(hub)) for _ in range(12)]
        for number, line in enumerate(lines):
            line.say(f"MAIL FROM:<ann@{DOMAIN}>")
            line.say(f"RCPT TO:<{address('ivy')}>")
            line.say("DATA", b"354")
            line.send(stuffed(mail("Good morning " * 1000, number=number)))
        lines[0].reply(b"")  # it is running
        assert rspamd.kill_workers() > 0
        replies = [line.reply(b"")[:3] for line in lines[1:]]
    assert set(replies) <= {b"250", b"451"}
    assert b"451" in replies
    with client(hub) as line:
        reply = accepted_in_time(hub, line, mail("Here again"), "joe", f"ann@{DOMAIN}")
    assert reply.startswith(b"250"), reply
    # The acknowledged messages and nothing else.
    kept = len(fetch(hub, "ivy"))
    assert kept - replies.count(b"250") in (0, 1)  # the first one, whose reply is not counted


def test_a_message_is_read_back_as_it_was_sent(hub: WideHub, signer: Signer) -> None:
    sent = signer.signed(mail("Lunch?\r\n.\r\n..two dots\r\n"))
    with client(hub) as line:
        assert send(line, sent, "cid").startswith(b"250")
    got = fetch(hub, "cid")[-1]
    assert unstuffed_end(got).endswith(sent)


def unstuffed_end(got: bytes) -> bytes:
    return unstuffed(got) if got.endswith(b"\r\n.\r\n") else got
