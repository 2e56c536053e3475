"""Common programs, over TLS.  A test is skipped, with a reason, if its program is missing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import SENDER, bodies, digest, fetch, message
from tests.support.hub import DEADLINE, HOSTNAME, PASSWORD, address
from tests.support.wide_hub import WideHub, certificate, smtp

BOXES = [f"prog{number}" for number in range(12)]
PLAIN = b"some text\r\n\r\n..dots\r\nlast line\r\n"
TEST = Path(__file__).parents[2] / ".test"


@pytest.fixture(scope="module")
def hub() -> Iterator[WideHub]:
    with WideHub(["smtp", "pop3", "starttls", "smtps", "stls", "pop3s"], BOXES) as hub:
        yield hub


@pytest.fixture(scope="module")
def boxes() -> Iterator[str]:
    return iter(BOXES)


@pytest.fixture
def trust(tmp_path: Path) -> str:
    """The file of the hub's certificate, for a client to trust."""
    path = tmp_path / "trust.pem"
    path.write_text(certificate(HOSTNAME)[0])
    return str(path)


def port(hub: WideHub, kind: str) -> int:
    place = hub.places[kind]
    assert isinstance(place, tuple)
    return place[1]


def run(*command: str, given: bytes = b"", status: int = 0) -> bytes:
    done = subprocess.run(command, input=given, capture_output=True, timeout=DEADLINE, check=False)
    assert done.returncode == status, f"{command}: {done.stdout!r}{done.stderr!r}"
    return done.stdout


@pytest.mark.parametrize("kind", ["starttls", "smtps"])
def test_curl_sends(hub: WideHub, mailbox: str, program, trust: str, kind: str) -> None:
    sent = message()
    scheme = "smtps" if kind == "smtps" else "smtp"
    run(
        program("curl"),
        *("-sS", "--ssl-reqd", "--cacert", trust),
        *("--connect-to", f"::127.0.0.1:{port(hub, kind)}"),
        *("--mail-from", SENDER, "--mail-rcpt", address(mailbox)),
        *(f"{scheme}://{HOSTNAME}/client.example.test", "-T", "-"),
        given=sent,
    )
    assert [digest(one) for one in bodies(hub, mailbox)] == [digest(sent)]


@pytest.mark.parametrize("kind", ["stls", "pop3s"])
def test_curl_fetches(hub: WideHub, program, trust: str, kind: str) -> None:
    """By PLAIN: Debian's curl has no SCRAM (mpop has, below)."""
    name = BOXES[-1]
    scheme = "pop3s" if kind == "pop3s" else "pop3"
    listed = run(
        program("curl"),
        *("-sS", "--ssl-reqd", "--cacert", trust, "--login-options", "AUTH=PLAIN"),
        *("--connect-to", f"::127.0.0.1:{port(hub, kind)}"),
        *("-u", f"{address(name)}:{PASSWORD}", f"{scheme}://{HOSTNAME}/"),
    )
    # An empty maildrop is an empty list; a login that fails is another exit status.
    assert listed.strip() == b""


@pytest.mark.parametrize(
    ("kind", "arguments", "said", "heard"),
    [
        ("starttls", ["-starttls", "smtp"], b"EHLO c\r\nQUIT\r\n", b"221 2.0.0 Bye"),
        ("smtps", [], b"EHLO c\r\nQUIT\r\n", b"221 2.0.0 Bye"),
        ("stls", ["-starttls", "pop3"], b"CAPA\r\nQUIT\r\n", b"+OK metad signing off"),
        ("pop3s", [], b"CAPA\r\nQUIT\r\n", b"+OK metad signing off"),
        ("pop3s", ["-tls1_2"], b"CAPA\r\nQUIT\r\n", b"+OK metad signing off"),
    ],
)
def test_openssl_speaks_with_it(hub, program, trust, kind, arguments, said, heard) -> None:
    out = run(
        program("openssl"),
        *("s_client", "-connect", f"127.0.0.1:{port(hub, kind)}", "-servername", HOSTNAME),
        *("-CAfile", trust, "-verify_return_error", "-verify_hostname", HOSTNAME),
        *("-quiet", "-ign_eof", *arguments),
        given=said,
    )
    assert heard in out


def test_swaks_sends_by_starttls(hub: WideHub, mailbox: str, program) -> None:
    out = subprocess.run(
        [
            program("swaks"), "--tls", "--server", f"127.0.0.1:{port(hub, 'starttls')}",
            "--ehlo", "client.example.test", "--from", SENDER, "--to", address(mailbox),
        ],
        capture_output=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    if b"Net::SSLeay" in out.stdout + out.stderr:
        pytest.skip("this swaks has no TLS (libnet-ssleay-perl)")
    assert out.returncode == 0, out.stdout + out.stderr
    assert len(fetch(hub, mailbox)) == 1


@pytest.mark.parametrize("kind", ["starttls", "smtps"])
def test_msmtp_sends(hub, mailbox, program, trust, tmp_path, kind) -> None:
    settings = tmp_path / "msmtprc"
    settings.write_text(
        f"account default\nhost 127.0.0.1\nport {port(hub, kind)}\ntls on\n"
        f"tls_starttls {'on' if kind == 'starttls' else 'off'}\ntls_trust_file {trust}\n"
        f"tls_host_override {HOSTNAME}\nfrom {SENDER}\ndomain client.example.test\nauth off\n"
    )
    settings.chmod(0o600)
    sent = message(PLAIN)
    run(program("msmtp"), "-C", str(settings), address(mailbox), given=sent)
    assert bodies(hub, mailbox) == [sent]


@pytest.mark.parametrize("auth", ["scram-sha-256", "plain", "user"])
def test_mpop_fetches(hub, program, trust, tmp_path, auth) -> None:
    settings, into = tmp_path / "mpoprc", tmp_path / "mbox"
    settings.write_text(
        f"account default\nhost 127.0.0.1\nport {port(hub, 'stls')}\ntls on\ntls_starttls on\n"
        f"tls_trust_file {trust}\ntls_host_override {HOSTNAME}\nuser {address(BOXES[-2])}\n"
        f"password {PASSWORD}\nauth {auth}\ndelivery mbox {into}\nuidls_file {tmp_path}/uidls\n"
    )
    settings.chmod(0o600)
    run(program("mpop"), "-C", str(settings))


def test_fetchmail_fetches_over_tls(hub, mailbox, program, trust, tmp_path) -> None:
    with smtp(hub, "smtp") as client:
        client.deliver(message(PLAIN), mailbox)
    settings = tmp_path / "fetchmailrc"
    settings.write_text(
        f"poll 127.0.0.1 protocol pop3 port {port(hub, 'pop3s')}\n"
        f'  user "{address(mailbox)}" password "{PASSWORD}" ssl sslcertck sslcertfile "{trust}"\n'
        f'  sslcommonname "{HOSTNAME}" mda "cat >> {tmp_path}/out"\n'
    )
    settings.chmod(0o600)
    run(program("fetchmail"), "-f", str(settings), "--pidfile", str(tmp_path / "pid"), "-s")
    assert b"last line" in (tmp_path / "out").read_bytes()
    assert fetch(hub, mailbox) == []


def test_nodemailer_sends_over_tls(hub, mailbox, program, trust) -> None:
    modules = TEST / "npm" / "node_modules"
    if not (modules / "nodemailer").exists():
        pytest.skip("nodemailer is not here (sh tools/test --full brings it)")
    script = f"""
        const fs = require("fs");
        const transport = require({str(modules / "nodemailer")!r}).createTransport({{
            host: "127.0.0.1", port: {port(hub, "starttls")}, requireTLS: true,
            tls: {{ ca: fs.readFileSync({trust!r}), servername: {HOSTNAME!r} }},
        }});
        transport.sendMail({{
            from: {SENDER!r}, to: {address(mailbox)!r}, subject: "x", text: "over TLS",
        }}).then(() => transport.close());
    """
    run(program("node"), "-e", script)
    (found,) = fetch(hub, mailbox)
    assert b" with ESMTPS id " in found
    assert b"over TLS" in found
