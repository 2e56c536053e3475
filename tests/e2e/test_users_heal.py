"""A damaged users database stops no hub: neither at a start nor while running."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import bodies, deliver, in_time, message
from tests.support.hub import METAD, Hub

PAGE = 4096
NAMES = [f"user{number}" for number in range(150)]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(["alice", *NAMES]) as made:
        yield made


def leaves(path: Path) -> list[int]:
    """The pages with rows of users in the middle of the alphabet and of the numbers."""
    data = path.read_bytes()
    return [at for at in range(2 * PAGE, len(data), PAGE)
            if data[at + 10] == 2 and data.count(b"user7", at, at + PAGE) > 1]  # fmt: skip


def zero(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bytes(PAGE))


def test_a_start_goes_on_with_a_spoiled_meta_page(hub: Hub) -> None:
    sent = message()
    deliver(hub, sent, "alice")
    hub.stop()
    zero(hub.data / "users" / "data.mdb", 0)
    hub.start()
    assert "one of the two meta pages of the users database was damaged" in hub.log.read_text()
    assert bodies(hub, "alice") == [sent]


def test_a_start_keeps_the_users_that_can_be_read(hub: Hub) -> None:
    sent = message()
    deliver(hub, sent, "alice")
    hub.stop()
    path = hub.data / "users" / "data.mdb"
    for at in leaves(path):
        zero(path, at)
    hub.start()
    assert (
        "accounts are kept, as many as could be read; the damaged file is quarantine/"
        in hub.log.read_text()
    )
    assert bodies(hub, "alice") == [sent]
    assert list((hub.data / "quarantine").glob("users-*.mdb"))
    listing = subprocess.run(
        [METAD, "user", "list", "--config", str(hub.config)], capture_output=True, check=True
    )
    kept = listing.stdout.split()
    assert b"alice@" in listing.stdout
    assert len(kept) > len(NAMES) // 3


def test_a_running_hub_goes_on_with_the_users_that_can_be_read(hub: Hub) -> None:
    """Regression: a worker that read the page was killed by a signal, and so was its successor."""
    sent = message()
    deliver(hub, sent, "alice")
    path = hub.data / "users" / "data.mdb"
    for at in leaves(path):
        zero(path, at)
    (hub.data / "index" / "suspect").write_text("worker 1 was killed by SIGBUS")
    assert in_time(lambda: "the users database was damaged (" in hub.log.read_text())
    assert in_time(lambda: hub.status()["state"] != "rebuilding")
    assert bodies(hub, "alice") == [sent]
