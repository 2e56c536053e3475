"""The control socket: requests and replies, who may ask, and a hub that no client can block."""

import json
import os
import select
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad import control, control_client, limits
from metad.control import Connection, ControlServer, socket_path
from metad.control_client import Client, request
from metad.errors import (
    EX_NOUSER,
    EX_PROTOCOL,
    MetadError,
    NoSuchUserError,
    OsError,
    UnavailableError,
)


class Hub:
    """A poll loop as the master has one, in a thread; answers by `answer(request)`."""

    def __init__(self, data, answer):
        self.data = data
        self.answer = answer
        self.server = ControlServer(socket_path(data))
        self.wake, self._waker = os.pipe()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while True:
            server = self.server
            readable, writable, _ = select.select(
                [self.wake, *server.filenos()], server.writers(), [], 10
            )
            if self.wake in readable:
                return
            self.turn(readable, writable)

    def turn(self, readable, writable):
        for fd in readable:
            if fd == self.server.fileno():
                self.server.accept()
            elif connection := self.server.connection(fd):
                for one in connection.feed():
                    self.answer(connection, one)
        for fd in writable:
            if connection := self.server.connection(fd):
                connection.flush()
        self.server.sweep()

    def stop(self):
        os.close(self._waker)
        self.thread.join()
        os.close(self.wake)
        self.server.close()


@pytest.fixture
def hub(tmp_path):
    hubs = []

    def make(answer):
        hubs.append(Hub(tmp_path, answer))
        return hubs[-1]

    yield make
    for one in hubs:
        one.stop()


@pytest.fixture
def server(tmp_path):
    made = ControlServer(socket_path(tmp_path))
    yield made
    made.close()


def connect(server):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(5)
    client.connect(str(server.path))
    return client, server.accept()


def drain(client):
    received = b""
    while data := client.recv(65536):
        received += data
    return received


def test_a_request_is_answered(hub, tmp_path):
    hub(lambda connection, asked: connection.reply({"asked": asked}))
    assert request(tmp_path, "stop", now=True) == {
        "ok": True,
        "asked": {"command": "stop", "now": True},
    }


def test_a_refusal_arrives_with_its_text_and_exit_code(hub, tmp_path):
    hub(lambda connection, asked: connection.reply_error(NoSuchUserError("no bob")))
    with pytest.raises(MetadError, match=r"^no bob$") as caught:
        request(tmp_path, "kick")
    assert caught.value.exit_code == EX_NOUSER


def test_several_requests_go_over_one_connection(hub, tmp_path):
    hub(lambda connection, asked: connection.reply({"is": asked["command"]}))
    with Client(tmp_path) as client:
        assert [client.request(name)["is"] for name in ("a", "b")] == ["a", "b"]


def test_a_large_reply_arrives_whole(hub, tmp_path):
    text = "x" * (2 * limits.MIB)
    hub(lambda connection, asked: connection.reply({"text": text}))
    assert request(tmp_path, "status")["text"] == text


def test_without_a_hub_the_error_says_so(tmp_path):
    with pytest.raises(UnavailableError, match="no hub is running"):
        request(tmp_path, "status")


def test_a_socket_left_by_a_dead_hub_is_no_hub(tmp_path):
    ControlServer(socket_path(tmp_path)).close_descriptors()
    assert socket_path(tmp_path).exists()
    with pytest.raises(UnavailableError, match="no hub is running"):
        request(tmp_path, "status")


def test_a_socket_left_by_a_dead_hub_is_replaced(tmp_path):
    ControlServer(socket_path(tmp_path)).close_descriptors()
    server = ControlServer(socket_path(tmp_path))
    client, connection = connect(server)
    assert connection is not None
    client.close()
    server.close()
    assert not socket_path(tmp_path).exists()


def test_a_path_longer_than_a_socket_address_works(hub, tmp_path):
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    made = Hub(deep, lambda connection, asked: connection.reply({}))
    try:
        assert request(deep, "status") == {"ok": True}
    finally:
        made.stop()


def test_the_client_sees_the_hub_end(server, tmp_path):
    with Client(tmp_path) as client:
        server.accept()
        assert not client.wait_closed(0.01)
        server.close()
        assert client.wait_closed(5)


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_given_up(server, tmp_path):
    with pytest.raises(UnavailableError, match="does not answer"):
        request(tmp_path, "status", timeout=0.05)


@pytest.mark.slow
def test_each_second_of_silence_is_told_and_its_end(server, tmp_path, monkeypatch):
    told = []
    tell = staticmethod(lambda hub, left: told.append((hub, left)))
    monkeypatch.setattr(Client, "tell_silence", tell)
    monkeypatch.setattr(control_client, "SILENCE", 0.05)
    with pytest.raises(UnavailableError, match="does not answer"):
        request(tmp_path, "status", timeout=0.2)
    assert {hub for hub, _ in told} == {f"the hub on {tmp_path}"}
    lefts = [left for _, left in told]
    assert 0.2 > lefts[0] > lefts[1] >= lefts[-1] == 0


def test_a_socket_that_was_read_keeps_its_timeout_for_sending(monkeypatch):
    monkeypatch.setattr(control_client, "SILENCE", 0.01)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(30)
        theirs.send(b"x")
        far = time.monotonic() + 30
        assert control_client.heard("hub", ours, lambda: ours.recv(9), far) == b"x"
        assert ours.gettimeout() == 30
        with pytest.raises(TimeoutError):
            control_client.heard("hub", ours, lambda: ours.recv(9), time.monotonic() + 0.03)
        assert ours.gettimeout() == 30


def test_a_hub_that_closes_without_an_answer_is_told(hub, tmp_path):
    hub(lambda connection, asked: connection.close())
    with pytest.raises(UnavailableError, match="without a reply"):
        request(tmp_path, "status")


@pytest.mark.parametrize("answer", [b"[]\n", b"nonsense\n", b'{"ok": false}\n', b"\xff\n"])
def test_an_answer_that_is_none_is_an_error(hub, tmp_path, answer):
    hub(lambda connection, asked: connection.sock.send(answer))
    with pytest.raises(MetadError):
        request(tmp_path, "status")


def test_only_the_owner_and_root_are_heard(tmp_path, monkeypatch):
    server = ControlServer(socket_path(tmp_path), owner=1234)
    for uid, heard in ((1234, True), (0, True), (1235, False), (-1, False)):
        monkeypatch.setattr(control, "peer", lambda sock, uid=uid: (1, uid))
        client, connection = connect(server)
        assert (connection is not None) == heard
        if not heard:
            assert client.recv(1) == b""
        client.close()
    server.close()


def test_the_peers_uid_is_the_kernels(server):
    client, connection = connect(server)
    assert connection.uid == os.geteuid()
    client.close()


def test_the_socket_is_for_its_owner_alone(server):
    assert server.path.stat().st_mode & 0o777 == 0o600


def test_accept_without_a_client_gives_none(server):
    assert server.accept() is None


def test_clients_above_the_limit_are_closed_and_room_is_made_when_one_goes(server):
    clients = [connect(server) for _ in range(limits.CONTROL_CLIENTS)]
    late, connection = connect(server)
    assert connection is None
    assert late.recv(1) == b""
    first = clients[0]
    first[0].close()
    assert first[1].feed() == []
    server.sweep()
    again, connection = connect(server)
    assert connection is not None
    for client, _ in [*clients, (late, None), (again, None)]:
        client.close()


def test_a_request_cut_into_bytes_is_one_request(server):
    client, connection = connect(server)
    line = json.dumps({"command": "status", "name": "å"}).encode() + b"\n"
    requests = []
    for octet in line:
        client.send(bytes([octet]))
        requests += connection.feed()
    assert requests == [{"command": "status", "name": "å"}]
    client.close()


def test_two_requests_in_one_write_are_two(server):
    client, connection = connect(server)
    client.send(b'{"command": "a"}\n{"command": "b"}\n')
    assert [one["command"] for one in connection.feed()] == ["a", "b"]
    client.close()


@pytest.mark.parametrize(
    "line", [b"", b"x", b"[]", b"{}", b'{"command": 1}', b"\xff", b"[" * 60_000]
)
def test_a_line_that_is_no_request_is_answered_and_ends_the_client(server, line):
    client, connection = connect(server)
    client.sendall(line + b'\n{"command": "stop"}\n')
    requests = []
    while not connection.closed:
        requests += connection.feed()
    assert requests == []
    reply = json.loads(drain(client).splitlines()[0])
    assert reply == {"ok": False, "error": "not a request", "exit_code": EX_PROTOCOL}
    client.close()


def test_a_line_without_an_end_is_cut_off(server):
    client, connection = connect(server)
    client.setblocking(False)
    sent = 0
    while not connection.closed and sent < 4 * limits.CONTROL_REQUEST:
        try:
            sent += client.send(b"x" * 4096)
        except OSError:
            break
        assert connection.feed() == []
    assert connection.closed
    client.close()


@pytest.mark.slow
def test_a_client_that_does_not_read_is_dropped_and_never_waited_for(server):
    client, connection = connect(server)
    for _ in range(3):
        connection.reply({"text": "x" * (limits.CONTROL_OUTPUT // 2)})
    assert connection.closed
    client.close()


def test_a_slow_client_gets_the_rest_when_it_reads(server):
    client, connection = connect(server)
    connection.reply({"text": "x" * limits.MIB})
    assert connection.wants_write
    assert server.writers() == [connection.fileno()]
    received = b""
    while not received.endswith(b"\n"):
        received += client.recv(65536)
        connection.flush()
    assert json.loads(received) == {"ok": True, "text": "x" * limits.MIB}
    assert server.writers() == []
    client.close()


def test_a_dead_client_is_closed_by_its_reply(server):
    client, connection = connect(server)
    client.close()
    connection.reply({})
    assert connection.closed
    connection.reply({})
    connection.reply_error(MetadError("x"))


def test_a_directory_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OsError, match="No such file"):
        ControlServer(socket_path(tmp_path / "none"))


@pytest.mark.slow
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_random_bytes_end_in_no_exception(chunks):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    connection = Connection(ours, 0)
    for chunk in chunks:
        if chunk and not connection.closed:
            theirs.send(chunk)
            assert all(isinstance(one["command"], str) for one in connection.feed())
    connection.close()
    theirs.close()
