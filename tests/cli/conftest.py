"""Runs commands in this process, and a hub that answers on a control socket."""

import io
import os
import select
import threading

import pytest

from metad import cli
from metad.control import ControlServer, socket_path


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No configuration of the machine, no METAD_DATA of the caller."""
    monkeypatch.setattr("metad.config.parse.SYSTEM_FILE", tmp_path / "no-system.toml")
    monkeypatch.delenv("METAD_DATA", raising=False)
    monkeypatch.setattr("metad.cli.launch.close_inherited", lambda: None)  # they belong to pytest


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def run(capsys, monkeypatch):
    """run(*arguments, stdin=b"") -> (exit code, standard output, standard error)."""

    def command(*arguments, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main([str(one) for one in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


class FakeHub:
    """Answers every request with `replies[command]`; after "stop" it ends like a hub."""

    def __init__(self, data, replies):
        data.mkdir(mode=0o700, exist_ok=True)
        self.requests = []
        self._replies = replies
        self._server = ControlServer(socket_path(data))
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while True:
            ready, _, _ = select.select([self._wake, *self._server.filenos()], [], [], 30)
            if self._wake in ready or not all(self._turn(fd) for fd in ready):
                self._server.close()
                return

    def _turn(self, fd):
        if fd == self._server.fileno():
            self._server.accept()
            return True
        connection = self._server.connection(fd)
        for request in connection.feed():
            self.requests.append(request)
            connection.reply(self._replies.get(request["command"], {}))
            if request["command"] == "stop" and "stuck" not in self._replies:
                return False
        self._server.sweep()
        return True

    def end(self):
        os.close(self._waker)
        self._thread.join()
        os.close(self._wake)


@pytest.fixture
def fake_hub(data):
    hubs = []

    def make(**replies):
        hubs.append(FakeHub(data, replies))
        return hubs[-1]

    yield make
    for one in hubs:
        one.end()
