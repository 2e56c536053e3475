"""Links over real TLS sockets on loopback addresses: who gets in, and what the logs tell."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from metad import limits
from metad.cluster import dialing, identity, transport
from metad.cluster.answers import Answer, Answered, LinkFailed
from metad.cluster.certificates import Pair, make_ca, make_member
from metad.cluster.identity import load_contexts, own_fingerprint
from metad.cluster.node import Node
from metad.cluster.transport import Links, split_address
from metad.cluster.view import Member, Membership, View
from metad.errors import ConfigError
from metad.system.accepting import Accepting
from metad.system.sockets import BACKLOG
from tests.cluster.link_kit import Clock, Station
from tests.cluster.views import CLUSTER, make_view

PATIENCE = 20.0
LONGEST = 0.5  # seconds between attempts


class Authority:
    """CA and certificates, made once."""

    def __init__(self, place: Path, name: str) -> None:
        self.ca = make_ca(CLUSTER)
        self._place = place / name

    def directory(self, number: int) -> Path:
        place = self._place / str(number)
        if not place.exists():
            place.mkdir(parents=True)
            self._write(place, identity.MEMBER, identity.MEMBER_KEY, make_member(self.ca, number))
            self._write(place, identity.CA, identity.CA_KEY, self.ca)
        return place

    def _write(self, place: Path, certificate: str, key: str, pair: Pair) -> None:
        (place / certificate).write_text(pair.certificate)
        (place / key).write_text(pair.key)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("cluster"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("cluster"), "theirs")


class Machine:
    """One node with its links."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, number: int, directory: Path, view: View
    ) -> None:
        self.station = Station(number, view, Clock())
        self.station.node.clock = time.monotonic
        self.lines = self.station.lines
        self.links = Links(loop, load_contexts(directory), self.station.node)

    @property
    def node(self) -> Node:
        return self.station.node


class Two:
    """Two machines of a cluster; node 2 listens.  `run` turns the loop until something is so."""

    def __init__(self, loop: asyncio.AbstractEventLoop, authority: Authority) -> None:
        self.loop = loop
        self.authority = authority
        self.sockets = [listening("127.0.0.2"), listening("127.0.0.3")]
        members = [self.member(number) for number in (1, 2)]
        self.view = make_view(*members)
        self.a = self.machine(1)
        self.b = self.machine(2)
        self.b.links.serve(self.sockets[1])

    def member(self, number: int, state: Membership = Membership.ACTIVE) -> Member:
        directory = self.authority.directory(number)
        address = "{}:{}".format(*self.sockets[number - 1].getsockname())
        return Member(number, address, own_fingerprint(directory), state, healed=False)

    def machine(
        self, number: int, *, view: View | None = None, directory: Path | None = None
    ) -> Machine:
        place = directory or self.authority.directory(number)
        return Machine(self.loop, number, place, view or self.view)

    def run(self, is_so: Callable[[], object]) -> None:
        async def wait() -> None:
            until = time.monotonic() + PATIENCE
            while not is_so():
                assert time.monotonic() < until, (self.a.lines, self.b.lines)
                await asyncio.sleep(0.002)

        self.loop.run_until_complete(wait())

    def ask(self, machine: Machine, body: bytes = b"mail", member: int = 2) -> Answer:
        got: list[Answer] = []
        machine.links.request(member, 16, [body], got.append, PATIENCE)
        self.run(lambda: got)
        return got[0]

    def line(self, machine: Machine, text: str) -> None:
        self.run(lambda: any(text in line for line in machine.lines))

    def connect(self) -> socket.socket:
        return socket.create_connection(self.sockets[1].getsockname(), timeout=PATIENCE)

    def close(self) -> None:
        self.a.links.close()
        self.b.links.close()
        for sock in self.sockets:
            sock.close()
        # The transports close in the loop's next turns.
        self.loop.run_until_complete(asyncio.sleep(0.01))


def listening(host: str, port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


@pytest.fixture(autouse=True)
def a_busy_machine_does_not_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLUSTER_STOOD_STILL", PATIENCE)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    faults: list[object] = []
    loop.set_exception_handler(lambda _, details: faults.append(details))
    yield loop
    loop.close()
    assert faults == []


@pytest.fixture
def two(loop: asyncio.AbstractEventLoop, ours: Authority) -> Iterator[Two]:
    with contextlib.closing(Two(loop, ours)) as made:
        yield made


def failure(answer: Answer) -> str:
    assert isinstance(answer, LinkFailed)
    return answer.reason


@pytest.mark.slow
def test_a_request_over_tls(two: Two) -> None:
    assert two.ask(two.a) == Answered(b"16:mail")
    assert two.a.links.is_up(2)
    assert two.b.station.asked[0][2].member == 1
    assert two.a.lines[0].startswith("link with node 2 (127.0.0.3:")
    assert two.b.lines[0].startswith("link with node 1 (127.0.0.1:")


@pytest.mark.slow
def test_large_bodies_and_many_small_ones_over_one_link(two: Two) -> None:
    got: list[Answer] = []
    large = bytes(range(256)) * 24_000  # 6 MB
    two.a.links.request(2, 20, [large], got.append, PATIENCE)
    small: list[Answer] = []
    for number in range(200):
        two.a.links.request(2, 16, [b"%d" % number], small.append, PATIENCE)
    two.run(lambda: got and len(small) == 200)
    assert got == [Answered(b"20:" + large)]
    assert sorted(one.body for one in small) == sorted(b"16:%d" % number for number in range(200))
    assert len(two.b.lines) == 1


@pytest.mark.slow
def test_tls_is_1_3_and_both_show_their_certificates(two: Two) -> None:
    two.ask(two.a)
    [dialed] = two.a.links._open
    assert dialed._wire._transport.get_extra_info("ssl_object").version() == "TLSv1.3"
    members = {one.number: one.fingerprint for one in two.view.members}
    assert dialed._fingerprint == members[2]
    [taken] = two.b.links._open
    assert taken._fingerprint == members[1]


@pytest.mark.slow
def test_a_member_that_comes_back_is_dialed_again(two: Two) -> None:
    two.ask(two.a)
    two.b.links.close()
    two.run(lambda: not two.a.links.is_up(2))
    two.b = two.machine(2)
    two.b.links.serve(two.sockets[1])
    while not isinstance(two.ask(two.a), Answered):
        pass
    assert any("lost: closed by the other side" in line for line in two.a.lines)


@pytest.mark.slow
@pytest.mark.parametrize("steady", [True, False])
def test_a_link_that_was_up_for_a_while_is_dialed_again_at_once(two: Two, steady: bool) -> None:
    """A process of the member has ended, and another one accepts on its address."""
    now = 1000.0
    two.a.node.clock = lambda: now
    assert isinstance(two.ask(two.a), Answered)
    now += (1.0 if steady else 0.9) * transport.STEADY_SECONDS
    two.b.links.close()
    two.run(lambda: not two.a.links.is_up(2))
    two.b = two.machine(2)
    two.b.links.serve(two.sockets[1])
    answer = two.ask(two.a)
    if steady:
        assert isinstance(answer, Answered)
    else:
        assert failure(answer) == "node 2 cannot be reached"


@pytest.mark.slow
def test_a_member_that_does_not_listen_fails_at_once(two: Two) -> None:
    two.b.links.close()
    two.sockets[1].close()
    assert failure(two.ask(two.a)) == "connection refused"
    assert failure(two.ask(two.a)) == "node 2 cannot be reached"
    [line] = two.a.lines
    assert line.startswith("warning: no link with node 2 (127.0.0.3:")
    assert line.endswith("connection refused")


class Queues:
    """Node 2 as processes that share its address: of each connection, `serves` tells whether it
    lands in the queue of one that serves.  The others wait in `dead`."""

    def __init__(self, two: Two, serves: list[bool]) -> None:
        self.two = two
        self.dead: list[socket.socket] = []
        self._serves = iter(serves)
        for server in two.b.links._servers:
            server.close()
        two.b.links._servers = [Accepting(two.loop, two.sockets[1], self._take, two.b.links.report)]

    def _take(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        if next(self._serves):
            self.two.b.links._accepted(sock, peer)
        else:
            self.dead.append(sock)

    def close(self) -> None:
        for sock in self.dead:
            sock.close()


@pytest.mark.slow
@pytest.mark.parametrize("serves", [[False, True], [False, False, True]])
def test_a_link_in_the_queue_of_a_dead_process_is_dialed_to_another_one(
    two: Two, serves: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialing, "ALONE_SECONDS", 0.1)
    with contextlib.closing(Queues(two, serves)) as queues:
        assert two.ask(two.a) == Answered(b"16:mail")
        assert len(queues.dead) == len(serves) - 1
        two.run(lambda: all(is_over(sock) for sock in queues.dead))
        assert two.ask(two.a) == Answered(b"16:mail")
        assert [line for line in two.a.lines if "warning" in line] == []


def is_over(sock: socket.socket) -> bool:
    """Whether the other side has closed it."""
    sock.setblocking(False)
    try:
        while sock.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


def test_a_late_connection_of_a_link_is_closed_and_the_link_stays(two: Two) -> None:
    """Two attempts may succeed within one turn of the loop."""
    two.ask(two.a)
    [link_of_a] = two.a.links._open
    late = transport._Connection(two.a.links, link_of_a)
    stream = Aborted()
    late.connection_made(stream)
    late.connection_lost(None)
    assert stream.aborted
    assert two.ask(two.a) == Answered(b"16:mail")
    assert two.a.links._open == {link_of_a}


class Aborted(asyncio.Transport):
    aborted = False

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.slow
def test_a_member_whose_processes_are_all_dead_is_given_up(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialing, "ALONE_SECONDS", 0.05)
    monkeypatch.setattr(transport, "CLUSTER_SILENCE", 0.4)
    with contextlib.closing(Queues(two, [False] * 10)) as queues:
        assert failure(two.ask(two.a)) == "no TLS handshake in time"
        assert len(queues.dead) == dialing.ATTEMPTS


@pytest.mark.slow
def test_attempts_become_rarer_up_to_half_a_second(two: Two) -> None:
    two.b.links.close()
    two.sockets[1].close()
    now = 1000.0
    two.a.node.clock = lambda: now
    times = []
    for _ in range(80):
        if failure(two.ask(two.a)) == "connection refused":
            times.append(now)
        now += 0.125
    waits = [b - a for a, b in itertools.pairwise(times)]
    assert waits == sorted(waits)
    assert waits[0] < 0.3
    assert waits[-1] == LONGEST
    assert len(two.a.lines) == 1  # the same reason is reported once


def test_a_member_that_dials_us_is_dialed_at_once(two: Two) -> None:
    address = two.sockets[0].getsockname()
    two.sockets[0].close()
    two.b.node.clock = lambda: 1000.0  # its pause after a failure never ends
    assert failure(two.ask(two.b, member=1)) == "connection refused"
    assert failure(two.ask(two.b, member=1)) == "node 1 cannot be reached"
    two.sockets[0] = listening(*address)
    two.a.links.serve(two.sockets[0])
    two.ask(two.a)
    assert two.ask(two.b, member=1) == Answered(b"16:mail")


def test_no_link_to_a_node_that_is_no_member(two: Two) -> None:
    assert failure(two.ask(two.a, member=3)) == "node 3 is not a member"
    assert failure(two.ask(two.a, member=1)) == "node 1 is not a member"


# -- refused


@pytest.mark.slow
def test_a_node_of_another_ca(two: Two, theirs: Authority) -> None:
    stranger = two.machine(1, directory=theirs.directory(1))
    assert failure(two.ask(stranger)) == "its certificate is not of this cluster's CA"
    assert "no link with node 2" in stranger.lines[0]
    two.line(two.b, "warning: 127.0.0.1 is refused: closed by the other side")
    assert two.b.station.asked == []
    stranger.links.close()


@pytest.mark.slow
def test_a_certificate_of_our_ca_that_is_not_the_members(two: Two, ours: Authority) -> None:
    impostor = two.machine(1, directory=ours.directory(4))
    text = "node 1 does not have the certificate of the view of epoch 1"
    assert failure(two.ask(impostor)) == text
    two.line(two.b, f"refused: {text}")
    two.line(impostor, f"refuses the link: {text}")
    assert two.b.station.asked == []
    impostor.links.close()


@pytest.mark.slow
def test_an_impostor_at_a_members_address_gets_no_mail(two: Two, ours: Authority) -> None:
    two.b.links.close()
    impostor = two.machine(2, directory=ours.directory(4))
    impostor.links.serve(two.sockets[1])
    text = "node 2 does not have the certificate of the view of epoch 1"
    assert failure(two.ask(two.a)) == text
    two.line(impostor, f"refuses the link: {text}")
    assert impostor.station.asked == []
    impostor.links.close()


@pytest.mark.slow
def test_a_removed_member(two: Two) -> None:
    members = (two.member(1, Membership.REMOVED), two.member(2))
    two.b.station.view = two.view.changed(members=members)
    text = "node 1 was removed from the cluster; empty it and join again"
    assert failure(two.ask(two.a)) == text
    two.line(two.b, f"refused: {text}")
    two.line(two.a, f"refuses the link: {text}")
    assert two.b.station.asked == []


@pytest.mark.slow
def test_a_member_that_is_removed_loses_its_link_within_a_tick(two: Two) -> None:
    two.ask(two.a)
    members = (two.member(1, Membership.REMOVED), two.member(2))
    two.b.station.view = two.view.changed(members=members)
    two.line(two.a, "refuses the link: node 1 was removed from the cluster")
    assert not two.a.links.is_up(2)


@pytest.mark.slow
def test_another_cluster(two: Two) -> None:
    two.b.station.view = replace(two.view, cluster="deadbeef" * 4)
    assert "another cluster: c0ffee00 and deadbeef" in failure(two.ask(two.a)) or any(
        "another cluster: deadbeef and c0ffee00" in line for line in two.a.lines
    )


def handshake(two: Two, context: ssl.SSLContext) -> Exception | None:
    """Connect as a foreign program would; what it sees."""

    def talk() -> Exception | None:
        try:
            with two.connect() as plain, context.wrap_socket(plain) as sock:
                sock.sendall(b"hello")
                return None if sock.recv(1) else ConnectionResetError()
        except OSError as error:
            return error

    return two.loop.run_until_complete(two.loop.run_in_executor(None, talk))


def client_context(directory: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if directory is not None:
        context.load_cert_chain(directory / identity.MEMBER, directory / identity.MEMBER_KEY)
    return context


def test_tls_1_2_is_refused(two: Two, ours: Authority) -> None:
    context = client_context(ours.directory(1))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(two, context) is not None
    two.line(two.b, "warning: 127.0.0.1 is refused: it does not speak TLS 1.3")


def test_a_certificate_of_another_ca_is_refused(two: Two, theirs: Authority) -> None:
    """Of a client that does not care who we are."""
    assert handshake(two, client_context(theirs.directory(1))) is not None
    two.line(two.b, "127.0.0.1 is refused: its certificate is not of this cluster's CA")


def test_a_client_without_a_certificate_is_refused(two: Two) -> None:
    assert handshake(two, client_context(None)) is not None
    two.line(two.b, "warning: 127.0.0.1 is refused: it has no certificate")


@pytest.mark.parametrize("data", [b"EHLO there\r\n" * 10, b"GET / HTTP/1.1\r\n\r\n"])
def test_plain_text_is_refused(two: Two, data: bytes) -> None:
    with two.connect() as sock:
        sock.sendall(data)
        two.line(two.b, "warning: 127.0.0.1 is refused: it does not speak TLS")
        sock.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(100):  # an alert, then the end
                pass


def test_a_certificate_whose_time_is_over_is_good_while_the_view_has_it(ours: Authority) -> None:
    contexts = load_contexts(ours.directory(1))
    for context in (contexts.client, contexts.server):
        assert context.verify_flags & 0x200000
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3


# -- half-open, silent, too many


@pytest.mark.slow
def test_a_peer_that_connects_and_sends_nothing(two: Two, monkeypatch) -> None:
    monkeypatch.setattr(transport, "CLUSTER_SILENCE", 0.2)
    with two.connect() as sock:
        two.line(two.b, "warning: 127.0.0.1 is refused: no TLS handshake in time")
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""
    two.run(lambda: not two.b.links._unknown)


@pytest.mark.slow
def test_a_peer_that_shakes_hands_and_sends_nothing(two: Two, ours: Authority) -> None:
    """As a machine that lost its power: its kernel does not answer, nothing closes the link."""

    def wait() -> bytes:
        context = client_context(ours.directory(1))
        with two.connect() as plain, context.wrap_socket(plain) as sock:
            data = b""
            while piece := sock.recv(4096):
                data += piece
            return data

    data = two.loop.run_until_complete(two.loop.run_in_executor(None, wait))
    assert len(data) > 16  # its HELLO
    two.run(lambda: not two.b.links._open)


@pytest.mark.slow
def test_a_peer_that_stops_is_given_up_after_three_seconds(two: Two) -> None:
    two.ask(two.a)
    two.b.station.answers = None
    got: list[Answer] = []
    two.a.links.request(2, 16, [], got.append, PATIENCE)
    begun = time.monotonic()
    two.b.links._timer.cancel()
    [taken] = two.b.links._open
    taken._wire._transport.pause_reading()
    two.run(lambda: got)
    assert failure(got[0]) == "silent for 3 s"
    assert time.monotonic() - begun > limits.CLUSTER_SILENCE - 1.5


def test_connections_without_a_certificate_are_bounded(two: Two, monkeypatch) -> None:
    monkeypatch.setattr(transport, "CLUSTER_UNKNOWN_PEERS", 3)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(two.connect())
        two.line(two.b, "warning: 127.0.0.1 is refused: too many links")
        assert len(two.b.links._unknown) == 3
    two.run(lambda: not two.b.links._unknown)
    assert two.ask(two.a) == Answered(b"16:mail")


def test_what_connects_after_the_end_is_not_accepted(two: Two) -> None:
    two.b.links.close()
    two.connect().close()
    two.loop.run_until_complete(asyncio.sleep(0.01))
    assert two.b.lines == []
    assert failure(two.ask(two.b, member=1)) == "shutting down"


# -- files


def test_missing_certificates_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="certificates cannot be used: No such file") as caught:
        load_contexts(tmp_path)
    assert "metad cluster join" in caught.value.remedy
    with pytest.raises(ConfigError, match=r"member\.pem: No such file"):
        own_fingerprint(tmp_path)
    (tmp_path / identity.MEMBER).write_text("what?")
    with pytest.raises(ConfigError, match="not PEM"):
        own_fingerprint(tmp_path)


@pytest.mark.parametrize(
    ("address", "split"),
    [("10.0.0.1:7525", ("10.0.0.1", 7525)), ("[fd00::1]:7525", ("fd00::1", 7525))],
)
def test_addresses(address: str, split: tuple[str, int]) -> None:
    assert split_address(address) == split


@pytest.mark.parametrize("address", ["", "mail.example:7525", "10.0.0.1", "10.0.0.1:x"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"(address|base 10)"):
        split_address(address)
