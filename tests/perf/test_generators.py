"""The load generators: they count acknowledged messages, and notice every wrong reply."""

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perf import generator, harness, state
from perf.docs import put
from perf.generator import GeneratorError, Pop3, Smtp
from perf.peers.peer import await_greeting

pytestmark = pytest.mark.skipif(
    not (shutil.which("cc") or shutil.which("gcc")), reason="no C compiler"
)

USERS = ("a@perf.example", "b@perf.example")


@pytest.fixture(autouse=True, scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled separately from those of the checkout, which another run may be using."""
    before, state.STATE = state.STATE, tmp_path_factory.mktemp("state")
    yield
    state.STATE = before


class Server:
    """One thread; every connection is served by `serve` until it returns."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                try:
                    self._serve(connection)
                except OSError:
                    pass

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


@pytest.fixture
def serving() -> Iterator[Callable[[Callable[[socket.socket], None]], Server]]:
    servers: list[Server] = []

    def start(serve: Callable[[socket.socket], None]) -> Server:
        servers.append(Server(serve))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


class Sink:
    """An SMTP server that keeps its input.  `stored`: its reply to a message."""

    def __init__(self, stored: bytes = b"250 ok\r\n") -> None:
        self.stored = stored
        self.messages: list[bytes] = []
        self.recipients: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            connection.sendall(b"220 sink\r\n")
            for line in lines:
                connection.sendall(self._reply(line, lines))
                if line == b"QUIT\r\n":
                    return

    def _reply(self, line: bytes, lines: object) -> bytes:
        if line == b"DATA\r\n":
            return b"354 go\r\n"
        if line.startswith(b"From: "):
            text = [line]
            for more in lines:  # type: ignore[attr-defined]
                if more == b".\r\n":
                    break
                text.append(more)
            self.messages.append(b"".join(text))
            return self.stored
        if line.startswith(b"RCPT"):
            self.recipients.append(line)
        return b"221 bye\r\n" if line == b"QUIT\r\n" else b"250-first\r\n250 ok\r\n"


@pytest.mark.parametrize("pipeline", [False, True])
@pytest.mark.parametrize("size", [160, 161, 239, 240, 241, 500, 5000])
def test_messages_have_exactly_the_size_and_go_round_the_users(serving, pipeline, size):
    sink = Sink()
    report = Smtp(1, 5, size, pipeline).run(serving(sink).port, USERS)
    assert report.count == 5
    assert {len(message) for message in sink.messages} == {size}
    assert sink.recipients == [f"RCPT TO:<{USERS[n % 2]}>\r\n".encode() for n in range(5)]


def test_a_connection_per_message(serving):
    report = Smtp(1, 3, per_connection=1).run(serving(Sink()).port, USERS)
    assert (report.count, report.facts["connections"]) == (3, 3)


@pytest.mark.parametrize("reply", [b"451 later\r\n", b"25", b"250 ok\r\n250 twice\r\n", b"\r\n"])
def test_a_wrong_reply_is_an_error(serving, reply):
    def serve(connection: socket.socket) -> None:
        Sink(reply)(connection)

    def ends_after_text(connection: socket.socket) -> None:
        # An incomplete reply is noticed only when the server closes.
        threading.Timer(0.2, connection.shutdown, (socket.SHUT_RDWR,)).start()
        serve(connection)

    server = serving(ends_after_text if reply == b"25" else serve)
    with pytest.raises(GeneratorError):
        Smtp(1, 2).run(server.port, USERS)


def test_no_server_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(GeneratorError, match="refused"):
        Smtp(1, 2).run(port, USERS)


def maildrop(texts: list[bytes]) -> Callable[[socket.socket], None]:
    """A POP3 server whose every maildrop has these messages."""

    def serve(connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            connection.sendall(b"+OK\r\n")
            for line in lines:
                verb, *arguments = line.split()
                if verb == b"STAT":
                    connection.sendall(b"+OK %d 100\r\n" % len(texts))
                elif verb == b"RETR":
                    text = texts[int(arguments[0]) - 1]
                    connection.sendall(b"+OK\r\n" + text + b".\r\n")
                else:
                    connection.sendall(b"+OK\r\n")
                if verb == b"QUIT":
                    return

    return serve


@pytest.fixture
def sent(serving) -> list[bytes]:
    """Messages as smtp-load sends them; the first and the 65th carry a digest."""
    sink = Sink()
    Smtp(1, 65, 400).run(serving(sink).port, USERS)
    return sink.messages


@pytest.mark.parametrize("retrieve", [1, 32])
@pytest.mark.parametrize("action", ["keep", "drain"])
def test_what_was_sent_comes_back(serving, sent, retrieve, action):
    server = serving(maildrop(sent))
    report = Pop3(1, 1, action, retrieve).run(server.port, USERS, "secret")
    assert (report.count, report.facts["samples"]) == (65, 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace(b"xx", b"yx", 1),
        lambda text: text[:-30] + b"\r\n",
        lambda text: text.replace(b"X-Load", b"X-Lost"),
    ],
)
def test_damage_is_seen(serving, sent, damage):
    server = serving(maildrop([damage(sent[0])]))
    with pytest.raises(GeneratorError, match="not what was sent"):
        Pop3(1, 1).run(server.port, USERS, "secret")


def test_a_message_in_anothers_place_is_no_damage_but_a_mixed_one_is(serving, sent):
    head, _, _ = sent[0].partition(b"\r\n\r\n")
    _, _, body = sent[1].partition(b"\r\n\r\n")
    server = serving(maildrop([head + b"\r\n\r\n" + body]))
    with pytest.raises(GeneratorError, match="not what was sent"):
        Pop3(1, 1).run(server.port, USERS, "secret")


def test_polls_are_counted_as_sessions(serving):
    report = Pop3(1, 7, "poll").run(serving(maildrop([])).port, USERS, "secret")
    assert (report.unit, report.count) == ("sessions", 7)


def test_a_latency_of_a_plan_begins_when_the_mail_was_due(serving, tmp_path):
    plan = tmp_path / "plan"
    plan.write_text("".join(f"0 200 {USERS[0]}\n" for _ in range(20)))

    def slow(connection: socket.socket) -> None:
        threading.Event().wait(0.01)
        Sink()(connection)

    command = [generator.program("smtp-load"), "--port", str(serving(slow).port)]
    command += ["--plan", str(plan), "--connections", "1", "--per-connection", "1"]
    report = generator.run(command)
    # One after another, each 10 ms: the last waited for all of them.
    assert report.count == 20
    assert report.latency_ms["max"] >= 200


def test_a_plan_that_is_none_is_refused(tmp_path):
    plan = tmp_path / "plan"
    plan.write_text("tomorrow 500 a@perf.example\n")
    command = [generator.program("smtp-load"), "--plan", str(plan)]
    with pytest.raises(GeneratorError, match="line 1"):
        generator.run(command)


@pytest.mark.parametrize("pipeline", [False, True])
def test_the_bound_answers_every_message(tmp_path, pipeline):
    (port,) = harness.free_ports(1)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "perf.peers.constants", str(port), "1", str(tmp_path)]
    log = tmp_path / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=root, stdout=output, stderr=output)
    try:
        await_greeting(port, server, log)
        report = Smtp(3, 10, 500, pipeline).run(port, USERS)
    finally:
        server.kill()
        server.wait()
    assert report.count == 10
    (kept,) = tmp_path.glob("mail-*")
    assert b"X-Load" in kept.read_bytes()[:5000]


def test_tables_go_into_their_place_and_nowhere_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- peers -->\nold\n<!-- /peers -->\nafter\n")
    put("peers", "new", page)
    assert page.read_text() == "before\n<!-- peers -->\nnew\n<!-- /peers -->\nafter\n"
    with pytest.raises(ValueError, match="paper"):
        put("paper", "new", page)


def test_tools_perf_lists_programs_that_exist():
    root = Path(__file__).parents[2]
    command = ["sh", str(root / "tools/perf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    listed = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert "peers" in listed
    assert all(len(line.split()) > 2 for line in done.stdout.splitlines()[1:])
    unknown = subprocess.run([*command, "nothing"], capture_output=True, text=True, check=False)
    assert unknown.returncode == 2
