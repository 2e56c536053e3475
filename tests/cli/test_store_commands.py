"""metad fsck and metad store logs, check, dump, rebuild: on a stopped store, and beside a hub."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys

import pytest

from metad.cli import fsck as fsck_module
from metad.cli import tables
from metad.errors import EX_DATAERR, EX_OK, EX_OSERR, EX_UNAVAILABLE, EX_USAGE
from metad.store.index.index import Index
from metad.store.index.state import boot_id
from metad.store.log.header import log_path
from tests.support.store_kit import StoreKit


@pytest.fixture
def store(data):
    """A store with three messages, one of them deleted, after a clean stop."""
    with StoreKit(data) as kit:
        kit.boot = boot_id()
        kit.start()
        sent = [kit.put([1, 2], b"Subject: %d\r\n\r\n.\r\n" % n) for n in range(3)]
        kit.delete(1, [sent[0].id])
        kit.stop()
        kit.ids = [one.id.hex() for one in sent]  # type: ignore[attr-defined]
        yield kit


def spoil_log(store):
    """Damage the first message.  Returns its id."""
    with open(log_path(store.store.logs, 1), "r+b") as file:
        file.seek(512 + 80)
        file.write(b"\0\0\0\0")
    return store.ids[0]


def spoil_index(store):
    index = Index(store.store.index)
    with index.writing() as txn:
        txn.drop(index.tables.mailboxes[0], delete=False)
    index.sync()
    index.close()


# -- fsck


@pytest.mark.slow
def test_fsck_of_a_clean_store(run, data, store):
    code, out, err = run("fsck", "--data", data)
    assert (code, err) == (EX_OK, "")
    assert out.startswith("clean: 1 logs, 4 records, ")
    assert out.endswith("; index with 3 messages\n")
    facts = json.loads(run("fsck", "--json", "--data", data)[1])
    assert (facts["clean"], facts["findings"], facts["messages"]) == (True, [], 3)


@pytest.mark.slow
def test_fsck_says_each_difference_on_a_line(run, data, store):
    name = spoil_log(store)
    code, out, _ = run("fsck", "--data", data)
    lines = out.splitlines()
    assert code == EX_DATAERR
    assert lines[0] == f"log 1: bytes 512 to 1024 do not verify (message {name})"
    assert lines[1].startswith("damaged: 1 findings; ")
    facts = json.loads(run("fsck", "--json", "--data", data)[1])
    assert (facts["clean"], facts["findings"], facts["more"]) == (False, lines[:1], 0)


@pytest.mark.slow
def test_fsck_names_a_damaged_store_json_and_checks_the_logs(run, data, store):
    (data / "store.json").write_text("{")
    code, out, err = run("fsck", "--data", data)
    lines = out.splitlines()
    assert (code, err) == (EX_DATAERR, "")
    assert lines[0].startswith(f"{data}/store.json: damaged: ")
    assert lines[0].endswith("; the next start makes it again from the logs' headers")
    assert lines[1].startswith("damaged: 1 findings; 1 logs, 4 records, ")
    facts = json.loads(run("fsck", "--json", "--data", data)[1])
    assert (facts["clean"], facts["findings"]) == (False, lines[:1])
    code, _, err = run("fsck", "--repair", "--data", data)
    assert code == EX_DATAERR
    assert "start the hub, or restore the file from a backup" in err


def test_fsck_in_json_is_bounded(run, data, store, monkeypatch):
    monkeypatch.setattr(fsck_module, "MOST_IN_JSON", 2)
    spoil_index(store)
    facts = json.loads(run("fsck", "--json", "--data", data)[1])
    assert len(facts["findings"]) == 2
    assert facts["more"] > 3


@pytest.mark.slow
def test_fsck_repair_rebuilds_the_index(run, data, store):
    spoil_index(store)
    assert run("fsck", "--data", data)[0] == EX_DATAERR
    code, out, err = run("fsck", "--repair", "--data", data)
    assert code == EX_OK, err
    assert "\nafter the repair:\nclean: " in out
    assert "rebuilding it from the logs" in err
    code, out, _ = run("fsck", "--repair", "--data", data)
    assert (code, out[:7]) == (EX_OK, "clean: ")


@pytest.mark.slow
def test_fsck_repair_says_what_remains(run, data, store):
    spoil_log(store)
    code, out, err = run("fsck", "--repair", "--data", data)
    assert code == EX_DATAERR
    assert out.count("log 1: bytes 512 to 1024 do not verify") == 2
    assert "kept in quarantine/" in err
    assert len(os.listdir(store.store.quarantine)) == 1
    facts = json.loads(run("fsck", "--repair", "--json", "--data", data)[1])
    assert facts["findings"][1] == "after the repair:"


@pytest.mark.slow
def test_checksums_only_leaves_the_index_out(run, data, store):
    spoil_index(store)
    for command in (["fsck", "--checksums-only"], ["store", "check"]):
        code, out, _ = run(*command, "--data", data)
        assert code == EX_OK
        assert out.endswith("; index not compared\n")
    spoil_log(store)
    assert run("store", "check", "--data", data)[0] == EX_DATAERR
    assert json.loads(run("store", "check", "--json", "--data", data)[1])["compared"] is False


@pytest.fixture
def hub_lock(data, store):
    """The locks of a running hub."""
    with (data / "lock").open("w") as lock:
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.slow
def test_beside_a_hub_fsck_pins_the_logs(run, data, store, hub_lock):
    assert run("fsck", "--data", data)[0] == EX_OK
    assert (data / "run" / "backup").exists()
    assert run("store", "check", "--data", data)[0] == EX_OK


@pytest.mark.parametrize("command", [["fsck", "--repair"], ["store", "rebuild"]])
def test_beside_a_hub_nothing_is_changed(run, data, store, hub_lock, command):
    code, out, err = run(*command, "--data", data)
    assert (code, out) == (EX_UNAVAILABLE, "")
    assert f"a hub is already running, pid {os.getpid()}" in err


def test_while_fsck_works_no_hub_starts(run, data, store, monkeypatch):
    (data / "lock").touch()
    held = []

    def check(*_):
        with (data / "lock").open() as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held.append(True)
        return EX_OK

    monkeypatch.setattr(fsck_module, "_check", check)
    assert run("fsck", "--data", data)[0] == EX_OK
    assert held == [True]


def test_without_a_store_there_is_one_line(run, data):
    data.mkdir()
    for command in (["fsck"], ["fsck", "--repair"], ["store", "logs"], ["store", "rebuild"]):
        code, out, err = run(*command, "--data", data)
        assert (code, out) == (EX_DATAERR, "")
        assert err.startswith(f"metad: fatal: {data}/store.json: no store here (")
    assert run("fsck", "--data", data / "none")[0] == EX_UNAVAILABLE
    assert os.listdir(data) == []


# -- store logs


def test_logs_are_listed_with_totals(run, data, store):
    code, out, _ = run("store", "logs", "--data", data)
    lines = out.splitlines()
    assert code == EX_OK
    names = ["log", "life", "state", "generation", "size", "end", "messages", "bytes", "live"]
    assert lines[0].split("\t") == names
    first = dict(zip(names, lines[1].split("\t"), strict=True))
    assert (first["log"], first["state"], first["messages"]) == ("1", "sealed", "3")
    assert first["live"].endswith("%")
    free = dict(zip(names, lines[2].split("\t"), strict=True))
    assert (free["state"], free["end"], free["live"]) == ("free", "-", "-")
    assert [line.split() for line in lines[4:7]] == [
        ["logs:", "2"], ["free:", "1"], ["size:", "65536"],
    ]  # fmt: skip


def test_logs_as_json_have_numbers(run, data, store):
    facts = json.loads(run("store", "logs", "--json", "--data", data)[1])
    one, free = facts["logs"]
    assert one["end"] == 2560
    assert one["live"] == one["bytes"] / 32768
    assert (free["state"], free["messages"]) == ("free", None)
    assert facts["total"]["messages"] == 3


def test_logs_are_listed_without_an_index_and_without_headers(run, data, store):
    store.drop_index()
    with open(log_path(store.store.logs, 1), "r+b") as file:
        file.write(bytes(32768))
    first, _ = json.loads(run("store", "logs", "--json", "--data", data)[1])["logs"]
    assert (first["state"], first["messages"], first["end"]) == ("damaged", None, None)


@pytest.mark.slow
def test_an_active_log_ends_at_its_watermark(run, data, store):
    store.start()
    store.put([1], b"x")
    store.crash()
    logs = json.loads(run("store", "logs", "--json", "--data", data)[1])["logs"]
    assert next(log["end"] for log in logs if log["state"] == "active") == 1024


# -- store dump


def test_a_dump_shows_records(run, data, store):
    code, out, _ = run("store", "dump", "1", "--data", data)
    assert code == EX_OK
    assert [line.split()[1] for line in out.splitlines()] == [
        "header", "message", "message", "message", "deletion", "seal", "end",
    ]  # fmt: skip
    assert "Subject" not in out
    _, out, _ = run("store", "dump", "1", "--bodies", "--data", data)
    assert "Subject: 1\n\n.\n" in out.replace("\r\n", "\n")
    facts = [
        json.loads(s)
        for s in run("store", "dump", "1", "--json", "--data", data)[1].split("\n")[:-1]
    ]
    assert [fact["id"] for fact in facts if fact["what"] == "message"] == store.ids


def test_a_dump_on_a_terminal_steers_nothing(run, data, store, monkeypatch):
    monkeypatch.setattr(tables, "terminal", lambda: True)
    _, out, _ = run("store", "dump", "1", "--bodies", "--data", data)
    assert "Subject: 1\n\n.\n" in out


def test_a_dump_of_damage_and_of_nothing(run, data, store):
    spoil_log(store)
    code, out, _ = run("store", "dump", "1", "--data", data)
    assert code == EX_DATAERR
    assert "damage" in out
    code, _, err = run("store", "dump", "99", "--data", data)
    assert code == EX_OSERR
    assert "00000099.log" in err
    for wrong in ("x", "../1", "1_0", "٣", "123456789"):
        assert run("store", "dump", "--data", data, "--", wrong)[0] == EX_USAGE


# -- store rebuild


@pytest.mark.slow
def test_rebuild_replaces_the_index(run, data, store):
    spoil_index(store)
    code, out, err = run("store", "rebuild", "--data", data)
    assert (code, out) == (EX_OK, "rebuilt: 1 logs, 3 live messages\n")
    assert err == "metad: index: as asked; rebuilding it from the logs\n"
    assert run("fsck", "--data", data)[0] == EX_OK


def test_backup_and_restore_are_of_the_same_group(run):
    out = run("store", "--help")[1]
    for verb in ("backup", "check", "dump", "logs", "rebuild", "restore"):
        assert f"\n  {verb} " in out


NO_MORE_IMPORTS = """
import sys
from metad.cli import context, main

class Refuse:
    def find_spec(self, name, *_):
        raise AssertionError(f"{name} is imported too late")

def become_owner(data, real=context.become_owner):
    real(data)
    sys.meta_path.insert(0, Refuse())

context.become_owner = become_owner
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["fsck", "fsck --json", "fsck --repair", "store logs", "store check", "store dump 1",
     "store rebuild"],
)  # fmt: skip
def test_everything_is_imported_before_root_becomes_the_owner(data, store, command):
    """The owner of DATA may not be able to read a Python that only root can."""
    spoil_index(store)
    command = [sys.executable, "-c", NO_MORE_IMPORTS, *command.split(), "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (EX_OK, EX_DATAERR), done.stderr
