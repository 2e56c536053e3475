"""A hub whose log is not read: standard error is a pipe without a reader."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.clients import SmtpLine, deliver, fetch, in_time, message
from tests.support.hub import Hub


@pytest.fixture
def unread() -> Iterator[tuple[Hub, int]]:
    hub = Hub(["alice"])
    os.mkfifo(hub.log)
    reader = os.open(hub.log, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    try:
        with hub:
            yield hub, reader
            hub.log.unlink()  # a hub that closes reads its log
            hub.log.touch()
    finally:
        os.close(reader)


@pytest.mark.slow
def test_a_log_that_is_not_read_stops_no_process(unread: tuple[Hub, int]) -> None:
    """Regression: after 576 refused RCPTs, a worker and the master were blocked in write(), and
    everything with them."""
    hub, reader = unread
    for number in range(25):
        with SmtpLine(hub) as smtp:
            smtp.say("MAIL FROM:<a@example.org>")
            for at in range(3):
                smtp.say(f"RCPT TO:<nobody{number}.{at}@example.test>", b"550")
    before = hub.workers()
    # Both the master and a new worker have something to log.
    os.kill(before[0], signal.SIGKILL)
    assert in_time(lambda: len(set(hub.workers()) - set(before)) == 1)
    deliver(hub, message(), "alice")
    assert len(fetch(hub, "alice")) == 1
    assert hub.status()["messages"] == 1
    seen = b""

    def is_reported() -> bool:
        nonlocal seen
        try:
            seen += os.read(reader, 65536)
        except BlockingIOError:
            return False
        return b" log lines were dropped unread" in seen

    assert in_time(is_reported)
    assert hub.stop() == 0
