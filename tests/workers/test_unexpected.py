"""What a worker's loop reports that nothing has caught."""

from __future__ import annotations

import pytest

from metad.workers.worker import is_of_a_handshake

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
