"""rspamd itself, with Redis, configured as docs/spam.md says: what a hub makes of its verdicts."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.support.clients import SmtpLine, fetch, stuffed, unstuffed
from tests.support.hub import HOSTNAME, address
from tests.support.rspamd_real import RealRspamd, root
from tests.support.wide_hub import Smtp, WideHub, connect

GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
DOMAIN = "good.example.test"
SOFT = "soft.example.test"


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
        (f"mail._domainkey.{DOMAIN}", "txt", f"v=DKIM1; k=rsa; p={signer.public}"),
    ]
    with RealRspamd(base, records) as running:
        yield running


@pytest.fixture(scope="module")
def hub(rspamd: RealRspamd) -> Iterator[WideHub]:
    settings = (
        f'[filter]\nrspamd = "{rspamd.address}"\nfailure = "defer"\ndeadline = "20s"\n'
        "hostname = false\n"
    )
    names = ["ann", "ben", "cid", "dan", "eve"]
    with WideHub(["proxied", "pop3", "smtp"], names, settings, workers=1) as hub:
        yield hub


def client(hub: WideHub, source: str = "192.0.2.10") -> Smtp:
    """From elsewhere: rspamd spares clients of local networks."""
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


def test_greylisting_is_seen(hub: WideHub) -> None:
    """A score between greylist and reject, from a sender that is new."""
    text = "BUY cheap watches now!!! http://192.0.2.99/x.exe CLICK HERE"
    with client(hub, "203.0.113.9") as line:
        reply = send(line, mail(text, domain="new.example.test"), "dan", "x@new.example.test")
    assert reply.startswith(b"451 4.7.1 "), reply
    assert fetch(hub, "dan") == []


def test_spam_and_ham_are_learned_from_a_mailbox(hub: WideHub, rspamd: RealRspamd) -> None:
    spam = "lottery winner claim your prize money transfer fee barrister deposit fund {}"
    with SmtpLine(hub) as line:  # from this machine, which rspamd does not greylist
        for number in range(3):
            line.say("MAIL FROM:<x@example.net>")
            line.say(f"RCPT TO:<{address('eve')}>")
            line.say("DATA", b"354")
            text = " ".join(spam.format(f"word{number}{n}") for n in range(10))
            line.send(stuffed(mail(text, number=number)))
            line.reply(b"250")
    options = ["--controller", rspamd.controller]
    learned = hub.run("mail", "learn", "spam", address("eve"), "1", "2", *options).stdout
    assert learned == "1: learned as spam\n2: learned as spam\n"
    assert hub.run("mail", "learn", "ham", address("eve"), "3", *options).stdout == (
        "3: learned as ham\n"
    )
    again = hub.run("mail", "learn", "spam", address("eve"), "1", *options)
    assert "already" in again.stdout
    missing = hub.run("mail", "learn", "spam", address("eve"), "9", *options, check=False)
    assert missing.returncode == 65
    nowhere = hub.run(
        "mail", "learn", "spam", address("eve"), "1", "--controller", "unix:/nowhere", check=False
    )
    assert nowhere.returncode == 69


def test_a_message_is_read_back_as_it_was_sent(hub: WideHub, signer: Signer) -> None:
    sent = signer.signed(mail("Lunch?\r\n.\r\n..two dots\r\n"))
    with client(hub) as line:
        assert send(line, sent, "cid").startswith(b"250")
    got = fetch(hub, "cid")[-1]
    assert (unstuffed(got) if got.endswith(b"\r\n.\r\n") else got).endswith(sent)
