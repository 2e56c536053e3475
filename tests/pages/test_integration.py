"""docs/integration.md: its files, with Postfix, rspamd, Dovecot and HAProxy themselves.

Only paths, ports and the names of users differ from the page.
"""

from __future__ import annotations

import contextlib
import imaplib
import poplib
import re
import shutil
import smtplib
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.config.parse import load
from tests.support import postfix, rspamd_real
from tests.support.clients import deliver, fetch, message
from tests.support.dovecot import PASSWORD, dovecot
from tests.support.hub import DEADLINE, Hub, address, free_ports, watching
from tests.support.pages import files
from tests.support.postfix import Postfix
from tests.support.rspamd_real import RealRspamd
from tests.support.wide_hub import WideHub, wait_for_lines

FILES = files("integration.md")
GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"


def test_every_configuration_on_the_page_is_one(tmp_path: Path) -> None:
    found = [text for path, text in FILES.items() if path.startswith("/etc/metad/metad.toml")]
    assert len(found) == 3
    for text in found:
        parsed(text, tmp_path)


def parsed(text: str, tmp_path: Path) -> None:
    """The page's settings are settings; its users, addresses and certificates are not here."""
    file = tmp_path / "metad.toml"
    file.write_text(text.replace("/var/", f"{tmp_path}/"))
    assert load(file).hostname.endswith("example.org")


@pytest.fixture(scope="module")
def behind_postfix() -> Iterator[tuple[WideHub, Postfix]]:
    """The hub, rspamd as a milter, and the Postfix of the page."""
    postfix.require()
    if (base := rspamd_real.root()) is None:
        pytest.skip("rspamd is not here (sh tools/test --full brings it)")
    (milter,) = free_ports(1)
    rspamd = RealRspamd(base, [])
    worker = f'bind_socket = "127.0.0.1:{milter}";\nupstream "local" {{ self_scan = yes; }}\n'
    (rspamd.home / "local.d" / "worker-proxy.inc").write_text(worker)
    settings = '[quota]\nfull = "refuse"'
    with rspamd, WideHub(["lmtp", "pop3"], ["ann", "bob"], settings) as hub:
        wait_for_port(milter)
        lines = FILES["/etc/postfix/main.cf"]
        lines = lines.replace("example.org", "example.test")
        lines = lines.replace("127.0.0.1:24", f"127.0.0.1:{hub.places['lmtp'][1]}")
        lines = lines.replace("127.0.0.1:11332", f"127.0.0.1:{milter}")
        with Postfix(f"{lines}\nmynetworks =\n") as server:
            yield hub, server


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), DEADLINE).close()
            return
        assert time.monotonic() < deadline


@pytest.mark.long
def test_what_postfix_accepts_is_in_the_mailbox(behind_postfix) -> None:
    hub, server = behind_postfix
    server.send([message()], "ann@example.test")
    deadline = time.monotonic() + DEADLINE
    while not (found := fetch(hub, "ann")):
        assert time.monotonic() < deadline, server.log()
    assert b" with LMTP id " in found[0]


@pytest.mark.parametrize("to", ["nobody.here@example.test", "ann@elsewhere.example"])
def test_postfix_refuses_what_the_hub_would_refuse(behind_postfix, to) -> None:
    _, server = behind_postfix
    with server.connected() as client:
        client.ehlo()
        client.mail("sender@example.net")
        code, text = client.rcpt(to)
        assert code in (550, 554), (code, text, server.log())


def test_spam_is_refused_by_the_milter(behind_postfix) -> None:
    hub, server = behind_postfix
    with pytest.raises(smtplib.SMTPDataError) as caught:
        server.send([b"Subject: spam\r\n\r\n" + GTUBE + b"\r\n"], "bob@example.test")
    assert caught.value.smtp_code in (550, 554)
    assert fetch(hub, "bob") == []


def test_dovecot_serves_what_the_hub_sorts() -> None:
    location = re.search(r"mail_location = (\S+)", FILES["/etc/dovecot/conf.d/10-mail.conf"])
    assert location is not None
    with Hub(["ann"], layer="sort") as hub:
        here = location[1].replace("/var/mail/vhosts", f"{hub.data}/maildirs")
        with dovecot(here, "imap") as server:
            deliver(hub, message(), "ann")
            client = imaplib.IMAP4("127.0.0.1", server.imap_port)
            client.login(address("ann"), PASSWORD)
            assert client.select("INBOX")[1] == [b"1"]
            client.logout()


@contextlib.contextmanager
def haproxy(hub: WideHub, ports: dict[str, int]) -> Iterator[subprocess.Popen[bytes]]:
    """The page's HAProxy: its ports and servers are ours."""
    if (program := shutil.which("haproxy")) is None:
        pytest.skip("HAProxy is not here (sh tools/test --full brings it)")
    text = FILES["/etc/haproxy/haproxy.cfg"]
    for public, kind in (("25", "proxied-starttls"), ("995", "proxied-pop3s")):
        place = hub.places[kind]
        text = re.sub(rf"bind :{public}\n", f"bind 127.0.0.1:{ports[public]}\n", text)
        text = re.sub(rf"10\.0\.0\.1:{public}\b", f"127.0.0.1:{place[1]}", text)
    config = hub.home / "haproxy.cfg"
    config.write_text(text)
    with (hub.home / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-db", "-f", config], stdin=subprocess.DEVNULL, stderr=log
        )
    try:
        yield process
    finally:
        with watching([process.pid]) as gone:
            process.terminate()
            gone(DEADLINE)
        process.wait(DEADLINE)


def test_the_clients_of_haproxy_are_the_clients_of_the_hub() -> None:
    smtp_port, pop3_port = free_ports(2)
    with (
        WideHub(["proxied-starttls", "proxied-pop3s"], ["ann"]) as hub,
        haproxy(hub, {"25": smtp_port, "995": pop3_port}) as process,
    ):
        trust = hub.trust
        trust.check_hostname = False  # smtplib takes the address for the name
        send_through(hub, process, smtp_port, trust)
        (line,) = wait_for_lines(hub, "status=stored")
        assert "client=127.0.0.9," in line
        client = poplib.POP3_SSL("127.0.0.1", pop3_port, context=trust)
        client.user(address("ann"))
        client.pass_("secret")
        assert client.stat()[0] == 1
        client.quit()
        (line,) = wait_for_lines(hub, "user=<ann@example.test>")
        assert "client=127.0.0.1," in line


def send_through(
    hub: WideHub, proxy: subprocess.Popen[bytes], port: int, trust: ssl.SSLContext
) -> None:
    """One message, once the proxy has found that the hub is up."""
    deadline = time.monotonic() + DEADLINE
    while True:
        with contextlib.suppress(OSError, smtplib.SMTPException):
            with smtplib.SMTP("127.0.0.1", port, source_address=("127.0.0.9", 0)) as client:
                client.starttls(context=trust)
                client.sendmail("sender@example.net", address("ann"), message())
            return
        said = (hub.home / "haproxy.log").read_text()
        assert proxy.poll() is None, said
        assert time.monotonic() < deadline, said
