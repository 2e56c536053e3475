"""What a worker reports that nothing has caught, on its loop or in a thread."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from metad.workers.worker import MailWorker, is_of_a_handshake

FUTURE = "Future exception was never retrieved"


@pytest.mark.parametrize(
    ("message", "error", "is_so"),
    [
        (FUTURE, ConnectionResetError(), True),
        (FUTURE, ValueError(), False),
        ("Task exception was never retrieved", ConnectionResetError(), False),
        ("Exception in callback", ConnectionResetError(), False),
    ],
)
def test_the_end_of_a_handshake_is_no_panic(message: str, error: Exception, is_so: bool) -> None:
    assert is_of_a_handshake({"message": message, "exception": error}) is is_so


def test_what_a_thread_did_not_catch_is_a_line_of_the_log() -> None:
    lines: list[str] = []
    worker: Any = SimpleNamespace(_report=lines.append)
    thread = threading.Thread(name="peer reads")
    details = threading.ExceptHookArgs((ValueError, ValueError("a bug"), None, thread))
    MailWorker._thread_failed(worker, details)
    assert lines == ["panic: thread peer reads: ValueError('a bug')"]
