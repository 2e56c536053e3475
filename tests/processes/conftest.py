"""For the tests of processes: the clients of the end-to-end tests, and a separate hub."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from tests.support.live import LiveHub


@pytest.fixture
def sabotaged(monkeypatch):
    """Makes hubs whose workers can be made to fail (see sabotage/sitecustomize.py)."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("sabotage")))
    return LiveHub


@pytest.fixture
def notified(monkeypatch):
    """What the hub tells the service manager: a function that returns the next datagram."""
    with (
        tempfile.TemporaryDirectory() as top,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        os.chmod(top, 0o711)
        path = Path(top) / "notify"
        sock.bind(str(path))
        path.chmod(0o777)
        sock.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")

        def until(key: str) -> dict[str, str]:
            while True:
                text = sock.recv(4096).decode()
                fields = dict(line.split("=", 1) for line in text.splitlines())
                if key in fields:
                    return fields

        yield until
