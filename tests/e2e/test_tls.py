"""TLS: STARTTLS, STLS, implicit; certificates by name and renewed; nothing sent before TLS
survives."""

from __future__ import annotations

import contextlib
import poplib
import select
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator

import pytest

from tests.support.clients import SENDER, bodies, deliver, digest, message
from tests.support.hub import DEADLINE, HOSTNAME, PASSWORD, address
from tests.support.wide_hub import (
    Pop3,
    Smtp,
    WideHub,
    certificate,
    connect,
    log_lines,
    pop3,
    smtp,
    trusting,
)

KINDS = ["smtp", "pop3", "starttls", "smtps", "stls", "pop3s", "lmtp-starttls"]
BOXES = [f"tls{number}" for number in range(12)]


@pytest.fixture(scope="module")
def hub() -> Iterator[WideHub]:
    with WideHub(KINDS, BOXES) as hub:
        yield hub


@pytest.fixture(scope="module")
def boxes() -> Iterator[str]:
    return iter(BOXES)


# --- mail over TLS ---


def test_starttls_carries_mail_and_says_so_in_the_trace(hub: WideHub, mailbox: str) -> None:
    sent = message()
    with smtp(hub, "starttls") as client:
        client.say("STARTTLS", b"220")
        client.secure(hub.trust)
        client.say("EHLO client.example.test")
        client.deliver(sent, mailbox)
    with pop3(hub, "pop3s") as reader:
        reader.log_in(mailbox)
        found = reader.retrieve(1)
    assert found.endswith(sent)
    assert b" with ESMTPS id " in found


def test_implicit_tls_carries_mail(hub: WideHub, mailbox: str) -> None:
    sent = message()
    with smtp(hub, "smtps") as client:
        client.deliver(sent, mailbox)
        client.say("STARTTLS", b"554")
        client.say("QUIT", b"221")
    assert bodies(hub, mailbox) == [sent]


def test_a_large_message_goes_both_ways_over_tls(hub: WideHub, mailbox: str, dice) -> None:
    sent = message(dice.randbytes(900_000).hex(" ", 30).replace(" ", "\r\n").encode() + b"\r\n")
    with smtp(hub, "smtps") as client:
        client.deliver(sent, mailbox)
    with pop3(hub, "pop3s") as reader:
        reader.log_in(mailbox)
        assert digest(reader.retrieve(1)[-len(sent) :]) == digest(sent)


def test_the_libraries_of_python_speak_tls_with_it(hub: WideHub, mailbox: str) -> None:
    sent = message()
    port = hub.places["starttls"][1]
    with smtplib.SMTP("127.0.0.1", port) as client:  # type: ignore[arg-type]
        client._host = HOSTNAME  # type: ignore[attr-defined]
        client.starttls(context=hub.trust)
        client.sendmail(SENDER, [address(mailbox)], sent, ["BODY=8BITMIME"])
    reader = poplib.POP3("127.0.0.1", hub.places["stls"][1])  # type: ignore[arg-type]
    reader.host = HOSTNAME
    assert "STLS" in reader.capa()
    reader.stls(context=hub.trust)
    assert "STLS" not in reader.capa()
    reader.user(address(mailbox))
    reader.pass_(PASSWORD)
    assert reader.stat()[0] == 1
    reader.quit()


def test_lmtp_speaks_starttls(hub: WideHub, mailbox: str) -> None:
    with smtp(hub, "lmtp-starttls", hello="LHLO") as client:
        client.say("STARTTLS", b"220")
        client.secure(hub.trust)
        client.say("LHLO client.example.test")
        client.deliver(message(), mailbox)
    with pop3(hub, "pop3") as reader:
        reader.log_in(mailbox)
        assert b" with LMTPS id " in reader.retrieve(1)


# --- what TLS forgets ---


def test_starttls_forgets_hello_and_envelope(hub: WideHub, mailbox: str) -> None:
    with smtp(hub, "starttls") as client:
        client.say(f"MAIL FROM:<{SENDER}>")
        client.say(f"RCPT TO:<{address(mailbox)}>")
        client.say("RSET")
        client.say("STARTTLS", b"220")
        client.secure(hub.trust)
        client.say(f"MAIL FROM:<{SENDER}>", b"503")
        client.say("EHLO client.example.test")
        client.say(f"RCPT TO:<{address(mailbox)}>", b"503")


def test_stls_forgets_the_user(hub: WideHub, mailbox: str) -> None:
    with pop3(hub, "stls") as client:
        client.say(f"USER {address(mailbox)}")
        client.say("STLS")
        client.secure(hub.trust)
        client.say(f"PASS {PASSWORD}", b"-ERR")
        client.log_in(mailbox)


@pytest.mark.parametrize("rest", [b"RSET\r\n", b"EHLO evil.example\r\n", b"X", b"\0"])
@pytest.mark.parametrize("kind", ["starttls", "lmtp-starttls"])
def test_smtp_in_the_clear_behind_starttls_has_no_effect(hub, kind: str, rest: bytes) -> None:
    """One segment with both: the session ends, and no command in it takes effect under TLS."""
    with smtp(hub, kind, hello="EHLO" if kind == "starttls" else "LHLO") as client:
        client.send(b"STARTTLS\r\n" + rest)
        assert client.rest() == b"554 5.5.0 Error: data before the TLS handshake\r\n"


@pytest.mark.parametrize("rest", [b"CAPA\r\n", b"USER evil\r\n", b"X", b"\0"])
def test_pop3_in_the_clear_behind_stls_has_no_effect(hub: WideHub, rest: bytes) -> None:
    with pop3(hub, "stls") as client:
        client.send(b"STLS\r\n" + rest)
        assert client.rest() == b"-ERR data before the TLS handshake\r\n"


@pytest.mark.parametrize("kind", ["starttls", "lmtp-starttls", "stls"])
def test_commands_in_the_clear_before_the_handshake_have_no_effect(hub, kind: str) -> None:
    """After the 220 was read, before the handshake: it is not a handshake, which ends the
    session."""
    hello = "LHLO" if kind == "lmtp-starttls" else "EHLO"
    client = pop3(hub, kind) if kind == "stls" else smtp(hub, kind, hello=hello)
    with client:
        client.say("STLS" if kind == "stls" else "STARTTLS")
        client.send(b"NOOP\r\n" * 3)
        assert b"250" not in client.rest()


def injected(place: tuple[str, int] | str, hello: bytes, command: bytes, evil: bytes) -> bytes:
    """What a victim receives under TLS if an attacker inserted `evil` before its handshake.

    The man in the middle of CVE-2011-0411: he holds back the client's first octets, sends his own
    command in the clear, and lets the handshake through.
    """
    raw = connect(place)
    with raw:
        raw.recv(1000)
        if hello:
            raw.sendall(hello)
            raw.recv(1000)
        raw.sendall(command + evil)
        answer = raw.recv(1000)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            with context.wrap_socket(raw, server_hostname=HOSTNAME) as secure:
                secure.sendall(b"NOOP\r\n")
                return answer + b"|" + secure.recv(1000)
        except (ssl.SSLError, ConnectionError, OSError):
            return answer + b"|"


@pytest.mark.parametrize(
    ("kind", "hello", "command", "evil"),
    [
        ("starttls", b"EHLO c\r\n", b"STARTTLS\r\n", b"MAIL FROM:<evil@example.org>\r\n"),
        ("starttls", b"EHLO c\r\n", b"STARTTLS\r\n", b"RSET\r\nNOOP\r\n"),
        ("lmtp-starttls", b"LHLO c\r\n", b"STARTTLS\r\n", b"MAIL FROM:<evil@example.org>\r\n"),
        ("stls", b"", b"STLS\r\n", b"USER evil@example.org\r\n"),
        ("stls", b"", b"STLS\r\n", b"CAPA\r\nNOOP\r\n"),
    ],
)
def test_an_injected_command_is_never_answered_behind_tls(hub, kind, hello, command, evil) -> None:
    heard = injected(hub.places[kind], hello, command, evil)
    assert heard.endswith(b"|"), heard


# --- input that is no handshake ---


@pytest.mark.parametrize("kind", ["smtps", "pop3s"])
@pytest.mark.parametrize(
    "octets",
    [b"EHLO client\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 4000, b"\0"],
)
def test_what_is_no_handshake_ends_the_connection(hub: WideHub, kind: str, octets: bytes) -> None:
    with Smtp(connect(hub.places[kind])) as client:
        client.send(octets)
        client.socket.shutdown(socket.SHUT_WR)
        assert b"220" not in client.rest()
    # The worker is still alive.
    with pop3(hub, "pop3s") as other:
        other.say("CAPA")


def test_a_connection_dropped_in_the_handshake_leaves_nothing(hub: WideHub) -> None:
    before = hub.status()
    for kind in ("starttls", "smtps", "pop3s"):
        with Smtp(connect(hub.places[kind])) as client:
            if kind == "starttls":
                client.reply(b"220")
                client.say("EHLO c")
                client.say("STARTTLS")
    deadline = time.monotonic() + DEADLINE
    while opened(hub) > 0:
        assert time.monotonic() < deadline
    assert hub.status()["messages"] == before["messages"]


def opened(hub: WideHub) -> int:
    return sum(one["smtp_open"] + one["pop3_open"] for one in hub.status()["workers"])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions_are_refused(hub: WideHub, version: ssl.TLSVersion) -> None:
    context = hub.trust
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = version
    with connect(hub.places["smtps"]) as raw, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(raw, server_hostname=HOSTNAME)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_of_today_are_spoken(hub: WideHub, version: ssl.TLSVersion) -> None:
    context = hub.trust
    context.minimum_version = context.maximum_version = version
    with Smtp(connect(hub.places["smtps"])) as client:
        client.secure(context)
        client.reply(b"220")
        client.say("QUIT", b"221")


def test_an_end_behind_tls_is_a_clean_one(hub: WideHub) -> None:
    """close_notify, not a cut: a client can tell the end from an attack (RFC 8446 6.1)."""
    with pop3(hub, "pop3s") as client:
        client.say("QUIT")
        client.socket.suppress_ragged_eofs = False
        assert client.socket.recv(100) == b""


def test_a_server_name_that_is_no_ascii_is_no_traceback(hub: WideHub) -> None:
    hello = client_hello("räk".encode("latin-1"))
    with Smtp(connect(hub.places["smtps"])) as client:
        client.send(hello)
        client.socket.shutdown(socket.SHUT_WR)
        client.rest()
    assert not log_lines(hub, "Traceback")


def client_hello(name: bytes) -> bytes:
    """A ClientHello of TLS 1.2 with a server name of any octets (RFC 8446 4.1.2, RFC 6066 3)."""
    host = b"\0" + len(name).to_bytes(2, "big") + name
    names = len(host).to_bytes(2, "big") + host
    extensions = b"\0\0" + len(names).to_bytes(2, "big") + names
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\xc0\x2b" + b"\x01\0"
    body += len(extensions).to_bytes(2, "big") + extensions
    handshake = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(handshake).to_bytes(2, "big") + handshake


# --- certificates ---


def served(hub: WideHub, name: str) -> bytes:
    """The certificate that a client gets when it asks for `name`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    place = hub.places["smtps"]
    with connect(place) as raw, context.wrap_socket(raw, server_hostname=name) as secure:
        found = secure.getpeercert(binary_form=True)
    assert found
    return found


def of(*names: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate(*names)[0])


def test_certificates_are_renewed_and_chosen_by_name_while_sessions_go_on(mailbox: str) -> None:
    with WideHub(["smtps", "pop3"], [mailbox], workers=1) as hub:
        assert served(hub, "other.example.org") == of(HOSTNAME)
        with smtp(hub, "smtps") as old:
            hub.install("mx2.example.org", "*.wild.example.org")
            hub.install(HOSTNAME, "renewed.example.org")
            wait_for(hub, "MX2.example.org", of("mx2.example.org", "*.wild.example.org"))
            wild = of("mx2.example.org", "*.wild.example.org")
            mine = of(HOSTNAME, "renewed.example.org")
            wait_for(hub, HOSTNAME, mine)
            assert served(hub, "a.wild.example.org") == wild
            for name in ("a.b.wild.example.org", "nobody.example.org", HOSTNAME):
                assert served(hub, name) == mine
            # A name that is an address is sent as none at all.
            assert served(hub, "127.0.0.1") == mine
            old.deliver(message(), mailbox)
            assert log_lines(hub, "certificates loaded")


def wait_for(hub: WideHub, name: str, expected: bytes) -> None:
    deadline = time.monotonic() + DEADLINE
    while served(hub, name) != expected:
        assert time.monotonic() < deadline
        select.select([], [], [], 0.05)


def test_a_bad_certificate_put_there_by_hand_costs_itself_only() -> None:
    with WideHub(["smtps"], workers=1) as hub:
        bad = hub.data / "tls" / "zzz.pem"
        bad.write_text("no certificate\n")
        bad.chmod(0o644)
        deadline = time.monotonic() + DEADLINE
        while not log_lines(hub, "warning: not loaded: "):
            assert time.monotonic() < deadline
            select.select([], [], [], 0.05)
        assert served(hub, HOSTNAME) == of(HOSTNAME)


def test_one_command_makes_a_certificate_to_try_tls_out(mailbox: str) -> None:
    with WideHub(["smtps", "pop3"], [mailbox], workers=1) as hub:
        hub.run("tls", "self-signed", "try.example.org", "www.try.example.org")
        wait_for_other(hub, "try.example.org", of(HOSTNAME))
        (pem,) = [path for path in (hub.data / "tls").iterdir() if path.name.startswith("try.")]
        head, mark, chain = pem.read_text().partition("-----BEGIN CERTIFICATE")
        assert "PRIVATE KEY" in head
        context = trusting(mark + chain)
        for name in ("try.example.org", "www.try.example.org"):
            with Smtp(connect(hub.places["smtps"])) as client:
                client.secure(context, name)
                client.reply(b"220")
        # For the hub's own name if none is given: it replaces the previous one.
        hub.run("tls", "self-signed")
        wait_for_other(hub, HOSTNAME, of(HOSTNAME))


def wait_for_other(hub: WideHub, name: str, old: bytes) -> None:
    deadline = time.monotonic() + DEADLINE
    while served(hub, name) == old:
        assert time.monotonic() < deadline
        select.select([], [], [], 0.05)


def test_a_listener_with_tls_and_no_certificate_is_refused_at_start(tmp_path) -> None:
    hub = WideHub(["smtps"])
    with contextlib.closing(Closing(hub)):
        (hub.data / "tls" / f"{HOSTNAME}.pem").unlink()
        done = hub.run("start", check=False)
        assert done.returncode == 78
        assert "metad tls install" in done.stderr


class Closing:
    """Ends a hub that was never started."""

    def __init__(self, hub: WideHub) -> None:
        self._hub = hub

    def close(self) -> None:
        self._hub.__exit__(None)


def test_a_plain_client_needs_no_certificate(hub: WideHub, mailbox: str) -> None:
    sent = message()
    deliver(hub, sent, mailbox)
    assert bodies(hub, mailbox) == [sent]
    assert trusting(certificate(HOSTNAME)[0]).cert_store_stats()["x509"] == 1
    with Pop3(connect(hub.places["pop3"])) as client:
        assert client.line().startswith(b"+OK")
        assert client.say("STLS", b"-ERR").endswith(b"not offered here")
