"""metad user list --long: usage, quota and last login of every mailbox."""

from __future__ import annotations

import json
import struct

import pytest

from metad.errors import EX_USAGE
from metad.store.identity import open_or_make_store
from metad.store.index import state
from metad.store.index.index import Index
from metad.system.osio import Osio
from metad.users.database import UserDatabase

NAMES = ["ann@x.org", "bob@x.org", "cid@y.org", "dan@y.org"]
# Sizes of the messages in octets, per mailbox.
MAIL = {"ann@x.org": [500, 600], "bob@x.org": [9_000], "cid@y.org": [10, 10, 10]}
LOGINS = {"ann@x.org": 1_700_000_000, "cid@y.org": 1_600_000_000}
CONFIG = """
data = {data}
[quota]
size = "1KiB"
messages = 4
[[domain]]
name = "y.org"
messages = 3
"""


@pytest.fixture
def numbers(data):
    """A store whose index has the mail in MAIL."""
    data.mkdir(mode=0o700)
    osio = Osio()
    store = open_or_make_store(osio, data)
    with UserDatabase(data / "users", create=True) as database:
        found = {name: database.add(name, None).id for name in NAMES}
        database.set_disabled("dan@y.org", True)
    index = Index(store.index)
    rows = [
        (found[name].to_bytes(4, "big") + bytes([at + 1]) * 16, octets.to_bytes(4, "big"))
        for name, sizes in MAIL.items()
        for at, octets in enumerate(sizes)
    ]
    with index.writing() as txn:
        index.tables.levels.add(txn, rows)
    index.sync()
    index.close()
    state.mark(osio, store.index, state.boot_id(), clean=True)
    with (data / "users" / "logins").open("wb") as file:
        for name, seconds in LOGINS.items():
            file.seek(8 * found[name])
            file.write(struct.pack(">Q", seconds))
    return found


@pytest.fixture
def listed(run, data, numbers, tmp_path):
    file = tmp_path / "m.toml"
    file.write_text(CONFIG.format(data=json.dumps(str(data))))

    def ask(*options):
        code, out, err = run("user", "list", *options, "--config", file)
        assert (code, err) == (0, "")
        return out

    return ask


def addresses(text):
    return [line.split("\t")[0] for line in text.splitlines()[1:]]


def test_every_mailbox_with_all_that_is_known(listed, numbers):
    found = {one["address"]: one for one in json.loads(listed("--long", "--json"))}
    assert list(found) == NAMES
    assert {name: (one["messages"], one["bytes"]) for name, one in found.items()} == {
        name: (len(MAIL.get(name, [])), sum(MAIL.get(name, []))) for name in NAMES
    }
    assert {name: one["last_login"] for name, one in found.items()} == {
        name: LOGINS.get(name) for name in NAMES
    }
    assert {name: one["id"] for name, one in found.items()} == numbers
    assert [found[name]["quota_messages"] for name in NAMES] == [4, 4, 3, 3]
    assert {one["quota"] for one in found.values()} == {1024}
    assert found["dan@y.org"]["disabled"]


def test_as_text(listed):
    lines = [line.split("\t") for line in listed("-l").splitlines()]
    assert lines[0] == ["address", "messages", "bytes", "quota", "used", "last_login", "notes"]
    assert lines[1] == [
        "ann@x.org", "2", "1100", "1024", "107%", "2023-11-14 22:13", "no password",
    ]  # fmt: skip
    assert lines[4][5:] == ["never", "disabled, no password"]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("address", "ann bob cid dan"),
        ("bytes", "bob ann cid dan"),
        ("messages", "cid ann bob dan"),
        ("quota", "bob ann cid dan"),
        ("login", "bob dan cid ann"),
    ],
)
def test_in_any_order_whole_or_its_beginning(listed, order, expected):
    wanted = [name for short in expected.split() for name in NAMES if name.startswith(short)]
    assert addresses(listed("--sort", order)) == wanted
    assert addresses(listed("--sort", order, "--first", "2")) == wanted[:2]


def test_those_whose_quota_is_reached(listed):
    assert addresses(listed("--over-quota")) == ["ann@x.org", "bob@x.org", "cid@y.org"]


def test_nothing_is_listed_as_nothing(run, data):
    data.mkdir()
    open_or_make_store(Osio(), data)
    with UserDatabase(data / "users", create=True):
        pass
    code, out, err = run("user", "list", "--long", "--json", "--data", data)
    assert (code, json.loads(out)) == (0, [])
    assert "usage is not known" in err


def test_the_short_list_is_as_it_was(listed):
    assert listed().splitlines()[0] == "ann@x.org\tno password"


def test_aliases_have_no_usage(run, data, numbers):
    code, _, err = run("user", "list", "--aliases", "--long", "--data", data)
    assert code == EX_USAGE
    assert "--aliases" in err


def test_more_than_one_piece_is_written_whole(listed, monkeypatch):
    monkeypatch.setattr("metad.cli.tables.LINES", 3)
    assert addresses(listed("-l")) == NAMES
    assert len(json.loads(listed("-l", "--json"))) == 4


def test_a_terminal_gets_a_table(listed, monkeypatch):
    monkeypatch.setattr("metad.cli.tables.terminal", lambda: True)
    text = listed("-l", "--first", "2")
    assert "ann@x.org" in text
    assert "107%" in text
    assert "cid@y.org" not in text
