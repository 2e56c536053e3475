"""A damaged index heals by itself, at a start and in the running hub: reliability row 21."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support.clients import bodies, deliver, in_time, message
from tests.support.hub import Hub
from tests.support.sizes import SEED, reached

COUNT = 30
PAGE = 4096


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(["alice"]) as made:
        yield made


def fill(hub: Hub) -> list[bytes]:
    sent = [b"number %d\r\n" % number for number in range(COUNT)]
    for body in sent:
        deliver(hub, message(body), "alice")
    return bodies(hub, "alice")


def healed(hub: Hub, sent: list[bytes]) -> bool:
    """The hub serves all mail."""
    with suppress(OSError, AssertionError):
        found = bodies(hub, "alice")
        return hub.status()["state"] == "serving" and found[: len(sent)] == sent
    return False


def spoil(hub: Hub, how: str) -> None:
    path = hub.data / "index" / "data.mdb"
    size = path.stat().st_size
    dice = random.Random(SEED)
    if how == "cut short":
        os.truncate(path, PAGE * 3)
        return
    with open(path, "r+b") as file:
        first = PAGE * 2 if how == "garbage behind the meta pages" else 0
        stop = PAGE * 2 if how == "zeroed meta pages" else size
        file.seek(first)
        octets = bytes(stop - first) if "zero" in how else dice.randbytes(stop - first)
        file.write(octets)


@pytest.mark.parametrize(
    "how", ["zeroed meta pages", "cut short", "garbage", "garbage behind the meta pages"]
)
def test_a_start_rebuilds_an_index_that_was_damaged(hub: Hub, how: str) -> None:
    """Regression: it ended with exit code 74, at every start."""
    sent = fill(hub)
    hub.stop()
    spoil(hub, how)
    hub.start()
    assert bodies(hub, "alice") == sent
    reached("row 21, a damaged index at a start: healed", 1)


@pytest.mark.parametrize("how", ["noted as suspect", "garbage behind the meta pages", "cut short"])
def test_a_running_hub_rebuilds_an_index_that_was_damaged(hub: Hub, how: str) -> None:
    """Regression: it continued with 452 for most mail, and "serving" in its status."""
    sent = fill(hub)
    if how == "noted as suspect":
        (hub.data / "index" / "suspect").write_text("by hand")
    else:
        spoil(hub, how)
        with suppress(OSError, AssertionError):  # a client must use it
            deliver(hub, message(b"after\r\n"), "alice")
    noticed = in_time(lambda: "the index is rebuilt:" in hub.log.read_text())
    assert noticed, hub.log.read_text()
    assert in_time(lambda: healed(hub, sent)), hub.log.read_text()
    deliver(hub, message(b"new\r\n"), "alice")
    assert len(bodies(hub, "alice")) >= len(sent) + 1
    assert not (hub.data / "index" / "suspect").exists()
    reached("row 21, a damaged index in a running hub: healed", 1)
