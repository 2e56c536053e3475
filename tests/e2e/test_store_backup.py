"""`metad store backup` of a running hub, and a hub on the restored store."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import Pop3Line, SmtpLine, bodies, deliver, digest, message, unique_ids
from tests.support.hub import Hub

NAMES = ["alice", "bob", "carol"]


@pytest.fixture
def own_hub() -> Iterator[Hub]:
    with Hub(NAMES, log_size="1MiB") as hub:
        yield hub


def fill(hub: Hub, dice: random.Random, messages: int = 60) -> None:
    with SmtpLine(hub) as smtp:
        for _ in range(messages):
            lines = [dice.randbytes(400).hex().encode() for _ in range(dice.randrange(70))]
            smtp.deliver(message(b"\r\n".join([*lines, b""])), *dice.sample(NAMES, 2))


def delete_some(hub: Hub, name: str) -> None:
    with Pop3Line(hub) as pop:
        pop.log_in(name)
        for number in range(1, pop.count() + 1, 3):
            pop.say(f"DELE {number}")
        pop.say("QUIT")


def contents(hub: Hub) -> dict[str, list[tuple[bytes, str]]]:
    """Unique id and digest of every message of every mailbox."""
    return {
        name: list(zip(unique_ids(hub, name), map(digest, bodies(hub, name)), strict=True))
        for name in NAMES
    }


def backup(hub: Hub, target: Path, *more: str) -> dict[str, int]:
    return json.loads(hub.run("store", "backup", str(target), "--json", *more).stdout)


def put_in_place(hub: Hub, source: Path) -> None:
    """The hub's data are lost, and restored from a backup."""
    shutil.rmtree(hub.data)
    hub.run("store", "restore", str(source), "--data", str(hub.data))
    hub.start()


def test_a_hub_at_work_is_backed_up_and_restored(own_hub: Hub, dice: random.Random) -> None:
    fill(own_hub, dice)
    delete_some(own_hub, "alice")
    before = contents(own_hub)
    node = json.loads((own_hub.data / "store.json").read_text())["node"]
    target = own_hub.home / "backup"
    with sending(own_hub):
        backup(own_hub, target)
    own_hub.stop()
    assert not (target / "index").exists()
    own_hub.run("store", "restore", str(target), "--data", str(own_hub.home / "rehearsal"))
    # A log that was in use has both headers in the restored store too: nothing is damaged.
    own_hub.run("fsck", "--data", str(own_hub.home / "rehearsal"))
    put_in_place(own_hub, target)
    after = contents(own_hub)
    for name in NAMES:  # mail sent meanwhile may or may not be there
        assert after[name][: len(before[name])] == before[name]
    assert json.loads((own_hub.data / "store.json").read_text())["node"] != node
    deliver(own_hub, message(), "alice")
    ids = [each for name in NAMES for each in unique_ids(own_hub, name)]
    assert len(unique_ids(own_hub, "alice")) == len(after["alice"]) + 1
    assert len(ids) > len(before["alice"])


@pytest.mark.long
def test_an_incremental_backup_is_whole_without_the_earlier_one(
    own_hub: Hub, dice: random.Random
) -> None:
    fill(own_hub, dice, 100)
    backup(own_hub, own_hub.home / "one")
    fill(own_hub, dice, 20)
    delete_some(own_hub, "bob")
    own_hub.run("gc", "--full")
    before = contents(own_hub)
    done = backup(own_hub, own_hub.home / "two", "--incremental", str(own_hub.home / "one"))
    assert done["linked"] >= 0
    again = backup(own_hub, own_hub.home / "three", "--incremental", str(own_hub.home / "two"))
    assert again["linked"] >= 1
    own_hub.stop()
    shutil.rmtree(own_hub.home / "one")
    shutil.rmtree(own_hub.home / "two")
    put_in_place(own_hub, own_hub.home / "three")
    assert contents(own_hub) == before


def test_a_stopped_hub_is_backed_up_and_its_users_too(own_hub: Hub, dice: random.Random) -> None:
    fill(own_hub, dice, 20)
    before = contents(own_hub)
    own_hub.stop()
    backup(own_hub, own_hub.home / "backup")
    put_in_place(own_hub, own_hub.home / "backup")
    assert contents(own_hub) == before
    assert [one["address"] for one in json.loads(own_hub.run("user", "list", "--json").stdout)]


def test_bad_places_are_refused_with_one_line(own_hub: Hub) -> None:
    (own_hub.home / "full").mkdir()
    (own_hub.home / "full" / "x").write_text("x")
    for arguments, code in (
        (("store", "backup", str(own_hub.home / "full")), 73),
        (("store", "restore", str(own_hub.home / "full"), "--data", str(own_hub.home / "n")), 69),
        (("store", "restore", str(own_hub.home / "full"), "--data", str(own_hub.data)), 73),
    ):
        done = own_hub.run(*arguments, check=False)
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == 1
    assert os.listdir(own_hub.home / "full") == ["x"]


class sending:
    """Mail is sent as long as this lasts."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        with SmtpLine(self._hub) as smtp:
            while not self._ended.is_set():
                smtp.deliver(message(), "alice", "carol")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
