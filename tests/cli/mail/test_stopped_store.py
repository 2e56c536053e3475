"""`metad mail` on a store without a hub: it reads what the next hub would, and changes nothing."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from metad.control import short_path, socket_path
from metad.control_client import request
from metad.errors import EX_OK, EX_UNAVAILABLE
from metad.store.backup.backup import Backup, restore
from metad.store.index.state import instance
from metad.system.osio import Osio
from metad.users.database import UserDatabase
from tests.support.store_kit import StoreKit

ADDRESS = "ann@example.test"


@pytest.fixture
def kit(data: Path) -> Iterator[StoreKit]:
    """A store with two messages, after a clean stop."""
    with StoreKit(data) as made:
        with UserDatabase(data / "users", create=True) as users:
            mailbox = users.add(ADDRESS).id
        made.boot = instance(str(data))
        made.start()
        for number in range(2):
            made.put([mailbox], b"Subject: %d\r\n\r\n.\r\n" % number)
        made.stop()
        yield made


def octets(directory: Path) -> dict[str, bytes]:
    """Of every file but LMDB's table of readers, which a reader writes to."""
    return {
        str(path): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "lock.mdb"
    }


def test_mail_list_writes_nothing_to_an_index_that_is_noted_clean(run, data, kit) -> None:
    before = octets(data / "index")
    code, out, _ = run("mail", "list", ADDRESS, "--data", data, "--json")
    assert (code, len(json.loads(out))) == (EX_OK, 2)
    assert octets(data / "index") == before


def test_a_restored_store_answers_no_mail_list_before_its_first_start(
    run, data, kit, tmp_path: Path
) -> None:
    """It was an empty list."""
    new = tmp_path / "new"

    def copy_users(target: Path) -> None:
        shutil.copy(data / "users" / "data.mdb", target)

    Backup(Osio(), kit.store, tmp_path / "backup").run(copy_users)
    restore(Osio(), tmp_path / "backup", new)
    code, out, err = run("mail", "list", ADDRESS, "--data", new)
    assert (code, out) == (EX_UNAVAILABLE, "")
    assert "start the hub, or run metad store rebuild" in err


@pytest.mark.slow
def test_mail_list_says_that_the_hub_did_not_answer_and_lists_all_the_same(
    run, data, kit, monkeypatch
) -> None:
    (data / "run").mkdir(exist_ok=True)
    monkeypatch.setattr("metad.cli.mail.mailstore.request", partial(request, timeout=0.1))
    with socket.socket(socket.AF_UNIX) as silent:
        with short_path(socket_path(data)) as path:
            silent.bind(path)
        silent.listen()
        code, out, err = run("mail", "list", ADDRESS, "--data", data, "--json")
    assert (code, len(json.loads(out))) == (EX_OK, 2)
    silence = f"the hub on {data} does not answer: its latest mail may be missing"
    assert err == f"metad: warning: {silence}\n"
