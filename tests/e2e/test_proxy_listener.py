"""PROXY headers on real listeners: the client's identity, who may set it, and harmless cases."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.clients import SENDER, bodies, message
from tests.support.hub import DEADLINE, address
from tests.support.wide_hub import Pop3, Smtp, WideHub, connect, log_lines, pop3, wait_for_lines

KINDS = ["smtp", "pop3", "proxied", "proxied-pop3", "proxied-smtps", "proxied-starttls"]
BOXES = [f"proxy{number}" for number in range(8)]
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 25\r\n"
V1_IPV6 = b"PROXY TCP6 2001:db8::7 ::1 40000 25\r\n"
V2 = (
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x10"
    + bytes([192, 0, 2, 9, 198, 51, 100, 1])
    + b"\x9c\x40\x00\x19"
    + b"\x04\x00\x01x"
)
LOCAL = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"


@pytest.fixture(scope="module")
def hub() -> Iterator[WideHub]:
    with WideHub(KINDS, BOXES) as hub:
        yield hub


@pytest.fixture(scope="module")
def boxes() -> Iterator[str]:
    return iter(BOXES[2:])


def proxied(hub: WideHub, kind: str, *pieces: bytes) -> Smtp:
    """A connection on which the header has arrived, in pieces; with TLS if the listener has it."""
    client = Smtp(connect(hub.places[kind]))
    for piece in pieces:
        client.send(piece)
    if kind.endswith("smtps"):
        client.secure(hub.trust)
    client.reply(b"220")
    client.say("EHLO client.example.test")
    return client


@pytest.mark.parametrize(
    ("header", "literal"),
    [(V1, b"[192.0.2.7]"), (V1_IPV6, b"[IPv6:2001:db8::7]"), (V2, b"[192.0.2.9]")],
)
@pytest.mark.parametrize("kind", ["proxied", "proxied-smtps"])
def test_the_trace_names_the_client_of_the_proxy(hub, kind, header, literal) -> None:
    with proxied(hub, kind, header) as client:
        client.deliver(message(), "proxy0")
    with pop3(hub, "pop3") as reader:
        reader.log_in("proxy0")
        last = reader.retrieve(reader.count())
        assert b"from client.example.test (" + literal + b")" in last
        reader.drop()


@pytest.mark.parametrize("header", [V1, V2])
def test_a_header_that_comes_byte_by_byte_is_the_same(hub: WideHub, header: bytes) -> None:
    octets = [header[at : at + 1] for at in range(len(header))]
    with proxied(hub, "proxied", *octets) as client:
        client.say("QUIT", b"221")


def test_what_comes_right_behind_the_header_belongs_to_the_session(hub: WideHub) -> None:
    """A proxy passes on what the client has sent already: for SMTP that is early talk, for POP3 the
    first command, for TLS the handshake (as in the parametrised test above)."""
    with Smtp(connect(hub.places["proxied"])) as client:
        client.send(V1 + b"EHLO client\r\n")
        assert client.rest() == b"554 5.5.0 Error: you sent data before the greeting\r\n"
    with Pop3(connect(hub.places["proxied-pop3"])) as reader:
        reader.send(V2 + b"CAPA\r\n")
        assert reader.line().startswith(b"+OK metad ready")
        assert reader.line().startswith(b"+OK capability")


def test_starttls_works_behind_a_proxy(hub: WideHub, mailbox: str) -> None:
    sent = message()
    with proxied(hub, "proxied-starttls", V1) as client:
        client.say("STARTTLS", b"220")
        client.secure(hub.trust)
        client.say("EHLO client.example.test")
        client.deliver(sent, mailbox)
    with pop3(hub, "pop3") as reader:
        reader.log_in(mailbox)
        found = reader.retrieve(1)
    # TLS discards what the client sent, not what the proxy sent.
    assert b"([192.0.2.7])" in found
    assert found.endswith(sent)


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"])
def test_a_connection_of_the_proxy_itself_keeps_its_address(hub: WideHub, header: bytes) -> None:
    sent = message()
    with proxied(hub, "proxied", header) as client:
        client.deliver(sent, "proxy1")
        client.say("QUIT", b"221")
    wait_for_lines(hub, "client=127.0.0.1, helo=<")


def test_health_checks_are_no_lines_in_the_log(hub: WideHub) -> None:
    """Connect and close; a LOCAL header and close; with and without TLS to come."""
    before = complaints(hub)
    for kind in ("proxied", "proxied-pop3", "proxied-smtps"):
        for octets in (b"", LOCAL, V1):
            with connect(hub.places[kind]) as check:
                if octets:
                    check.sendall(octets)
    # A served session proves that those before it were processed.
    with proxied(hub, "proxied", V1) as client:
        client.say("QUIT", b"221")
    settle(hub)
    assert complaints(hub) == before


def complaints(hub: WideHub) -> list[str]:
    """Log lines about connections, not about mail."""
    of_sessions = log_lines(hub, "client hung up")
    return log_lines(hub, "metad/connect") + log_lines(hub, "metad/tls") + of_sessions


def settle(hub: WideHub) -> None:
    """Wait until no session is open."""
    deadline = time.monotonic() + DEADLINE
    while sum(one["smtp_open"] + one["pop3_open"] for one in hub.status()["workers"]):
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    "octets",
    [
        b"EHLO client\r\n",
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP4 1.2.3.4\r\n",
        V2[:13] + b"\x41" + V2[14:],
        b"\0" * 20,
        b"PROXY " + b"x" * 200,
    ],
)
def test_a_connection_without_a_header_is_closed_and_logged_once(
    hub: WideHub, octets: bytes
) -> None:
    before = len(log_lines(hub, "bad PROXY header"))
    with Smtp(connect(hub.places["proxied"])) as client:
        client.send(octets)
        assert client.rest() in (b"", b"(reset)")
    assert len(wait_for_lines(hub, "bad PROXY header", before + 1)) == before + 1


def test_who_is_no_trusted_proxy_is_closed(hub: WideHub) -> None:
    with Smtp(connect(hub.places["proxied"], "127.0.0.2")) as client:
        assert client.rest() in (b"", b"(reset)")
    with Smtp(connect(hub.places["proxied-pop3"], "127.0.0.2")) as client:
        client.send(V1)
        assert client.line().startswith(b"+OK")


@pytest.mark.parametrize("header", [V1, LOCAL, b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"])
def test_a_proxy_is_never_loopback_to_a_password(hub: WideHub, header: bytes) -> None:
    with Pop3(connect(hub.places["proxied-pop3"])) as reader:
        reader.send(header)
        reader.line()
        assert b"\r\nUSER\r\n" not in b"\r\n" + reader.listing("CAPA")
        reader.say(f"USER {address('alice')}", b"-ERR")


def test_a_header_with_half_a_connection_behind_it_is_served(hub: WideHub, mailbox: str) -> None:
    """The proxy passes the client's FIN on: whole commands before it are still answered."""
    with Smtp(connect(hub.places["proxied-pop3"])) as client:
        client.send(V1 + b"CAPA\r\nQUIT\r\n")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.rest().endswith(b".\r\n+OK metad signing off\r\n")


def test_the_direct_listeners_take_no_header(hub: WideHub, mailbox: str) -> None:
    """No client can set its address at a listener that is not behind a proxy."""
    with Smtp(connect(hub.places["smtp"])) as client:
        client.reply(b"220")
        client.send(V1)
        client.reply(b"500")
        client.say("EHLO client.example.test")
        client.say(f"MAIL FROM:<{SENDER}>")
        client.say("RSET")
        client.deliver(message(), mailbox)
    assert len(bodies(hub, mailbox)) == 1
