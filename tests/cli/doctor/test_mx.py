"""MX records, from a name server on loopback."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

import pytest

from metad.cli.doctor import mx
from metad.cli.doctor.mx import DnsError
from tests.support.hub import free_ports

MX = 15


def packed(name):
    return b"".join(bytes([len(one)]) + one.encode() for one in name.split(".")) + b"\0"


def reply(question, records, *, flags=0x8180, code=0):
    """An answer with MX records whose owner is a pointer to the name in the question."""
    answers = b""
    for kind, preference, name in records:
        data = struct.pack(">H", preference) + packed(name) if kind == MX else bytes(4)
        answers += b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 60, len(data)) + data
    head = question[:2] + struct.pack(">5H", flags | code, 1, len(records), 0, 0)
    return head + question[12:] + answers


@pytest.fixture
def server():
    """server(make) -> an address; `make` gives the reply to a question, by UDP and by TCP."""
    with contextlib.ExitStack() as opened:

        def start(make, make_tcp=None):
            udp = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            tcp = opened.enter_context(socket.socket())
            place = ("127.0.0.1", free_ports(1)[0])  # for both kinds, used by no other test
            udp.bind(place)
            udp.settimeout(30)
            tcp.bind(place)
            tcp.listen()
            tcp.settimeout(30)

            def answer():
                question, client = udp.recvfrom(512)
                for one in make(question):
                    udp.sendto(one, client)
                if make_tcp:
                    line, _ = tcp.accept()
                    with line:
                        whole = line.recv(512)
                        data = make_tcp(whole[2:])
                        line.sendall(struct.pack(">H", len(data)) + data)

            thread = threading.Thread(target=answer)
            thread.start()
            opened.callback(thread.join)
            return udp.getsockname()

        yield start


def test_records_come_by_preference(server):
    asked = server(lambda q: [reply(q, [(MX, 20, "b.x.org"), (MX, 10, "A.x.org"), (1, 0, "z")])])
    assert mx.mail_exchangers("x.org", [asked]) == [(10, "a.x.org"), (20, "b.x.org")]


def test_a_domain_without_mx_or_that_does_not_exist_has_none(server):
    assert mx.mail_exchangers("x.org", [server(lambda q: [reply(q, [])])]) == []
    assert mx.mail_exchangers("x.org", [server(lambda q: [reply(q, [], code=3)])]) == []


def test_an_answer_to_another_question_is_passed_by(server):
    def make(question):
        other = bytes([question[0] ^ 1]) + question[1:]
        return [reply(other, [(MX, 1, "evil")]), reply(question, [(MX, 1, "good")])]

    assert mx.mail_exchangers("x.org", [server(make)]) == [(1, "good")]


def test_a_long_answer_comes_by_tcp(server):
    asked = server(
        lambda q: [reply(q, [], flags=0x8380)], lambda q: reply(q, [(MX, 5, "mx.x.org")])
    )
    assert mx.mail_exchangers("x.org", [asked]) == [(5, "mx.x.org")]


def test_the_next_server_is_asked_if_one_fails(server):
    bad = server(lambda q: [reply(q, [], code=2)])
    good = server(lambda q: [reply(q, [(MX, 5, "mx.x.org")])])
    assert mx.mail_exchangers("x.org", [bad, good]) == [(5, "mx.x.org")]


@pytest.mark.slow
def test_a_server_that_is_silent_is_an_error(server, monkeypatch):
    monkeypatch.setattr(mx, "SECONDS", 0.05)
    with pytest.raises(DnsError):
        mx.mail_exchangers("x.org", [server(lambda q: [])])
    with pytest.raises(DnsError, match="no name server"):
        mx.mail_exchangers("x.org", [])


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 12,
        b"\0\7\x81\x80\0\1\0\1\0\0\0\0\xc0",
        b"\0\7\x81\x80\0\1\0\0\0\0\0\0\xc0\x0c",
        b"\0\7\x81\x80\0\0\0\1\0\0\0\0\0\0\x0f\0\1\0\0\0\0\0\x09\0\1\x09x",
        b"\0\7\x01\0" + b"\0" * 8,
    ],
)
def test_nonsense_is_an_error_and_no_crash(server, monkeypatch, answer):
    monkeypatch.setattr(mx, "SECONDS", 0.2)
    with pytest.raises(DnsError):
        mx.mail_exchangers("x.org", [server(lambda q: [q[:2] + answer[2:]])])


def test_servers_are_those_of_the_system(tmp_path):
    file = tmp_path / "resolv.conf"
    file.write_text("# x\nsearch a\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver\n")
    assert mx.servers(file) == [("192.0.2.1", 53), ("fe80::1", 53)]
    file.write_text("")
    assert mx.servers(file) == [("127.0.0.1", 53)]
    with pytest.raises(DnsError):
        mx.servers(tmp_path / "none")
