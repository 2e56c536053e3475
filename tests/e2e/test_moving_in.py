"""A whole server moves in; and root, which moves it, is not tricked by its users."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.support.clients import fetch, unique_ids
from tests.support.commands import metad
from tests.support.hub import Hub, address

NAMES = ("ann", "bob", "eve")
MESSAGE = b"Subject: one\n\nhello\n"


@pytest.fixture(scope="module")
def hub():
    with Hub([*NAMES]) as made:
        yield made


@pytest.fixture
def tmp_path():
    """A directory that other users may enter, unlike pytest's own."""
    top = Path(tempfile.mkdtemp(prefix="metad-mail-"))
    top.chmod(0o755)
    yield top
    shutil.rmtree(top)


def maildir(top: Path, name: str, files: dict[str, bytes], uid: int = -1) -> Path:
    """A Maildir at TOP/DOMAIN/NAME, given to `uid` if this is root."""
    path = top / address(name).partition("@")[2] / name
    for part in ("cur", "new", "tmp"):
        (path / part).mkdir(parents=True)
    for file, octets in files.items():
        (path / "new" / file).write_bytes(octets)
    if uid >= 0:
        for one in (path, *path.rglob("*")):
            os.chown(one, uid, uid, follow_symlinks=False)
    for one in path.parents[: len(path.relative_to(top).parts)]:
        one.chmod(0o755)
    return path


def import_all(hub: Hub, top: Path, *more: str, check: bool = True) -> tuple[int, dict]:
    done = metad(hub, "mail", "import", "--all", "--from", f"maildir:{top}/%d/%n", "--json", *more,
                 check=check)  # fmt: skip
    return done.returncode, {one["address"]: one for one in json.loads(done.stdout)}


def test_every_mailbox_comes_in_and_a_missing_one_is_named(hub, tmp_path):
    maildir(tmp_path, "ann", {"1.a.host": MESSAGE, "2.b.host": MESSAGE + b"2\n"})
    maildir(tmp_path, "bob", {"1.a.host": MESSAGE})
    code, results = import_all(hub, tmp_path, check=False)
    assert results[address("ann")]["imported"] == 2
    assert results[address("bob")]["imported"] == 1
    assert "eve" in results[address("eve")]["error"]
    assert code == 71
    assert len(fetch(hub, "ann")) == 2
    code, results = import_all(hub, tmp_path, check=False)
    assert (results[address("ann")]["imported"], results[address("ann")]["known"]) == (0, 2)


@pytest.mark.parametrize("arguments", [[], ["ann@example.test", "--all"]])
def test_one_address_or_all_but_not_both(hub, arguments):
    done = metad(hub, "mail", "import", *arguments, "--from", "mbox:x", check=False)
    assert done.returncode == 64
    assert "one address or --all" in done.stderr


def test_nothing_is_imported_where_ids_would_be_duplicates(hub, tmp_path):
    maildir(tmp_path, "ann", {"1.a.host": MESSAGE})
    for bad in ("%v", "%x"):
        done = metad(hub, "mail", "import", address("ann"), "--from", f"maildir:{tmp_path}",
                     "--uidl-format", bad, check=False)  # fmt: skip
        assert done.returncode == 64
        assert "--uidl-format" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be tricked")
def test_a_link_to_a_file_of_roots_is_not_delivered(hub, tmp_path):
    """Regression: a user's Maildir had a link to a file that only root may read, and the file was
    imported as mail."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"Subject: secret\n\nroot only\n")
    secret.chmod(0o600)
    path = maildir(tmp_path, "eve", {"1.a.host": MESSAGE})
    (path / "new" / "2.b.host").symlink_to(secret)
    os.link(secret, path / "new" / "3.c.host")  # a hard link to a file of root's too
    for one in (path, path / "new", path / "cur", path / "new" / "1.a.host"):
        os.chown(one, 54321, 54321)
    done = metad(hub, "mail", "import", address("eve"), "--from", f"maildir:{path}", "--json",
                 check=False)  # fmt: skip
    facts = json.loads(done.stdout)
    assert done.returncode == 65
    assert facts["imported"] == 1
    assert len(facts["refused"]) == 2
    assert not any(b"root only" in one for one in fetch(hub, "eve"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be tricked")
def test_files_of_another_user_are_read_as_that_user(hub, tmp_path):
    path = maildir(tmp_path, "bob", {"1.a.host": b"Subject: owned\n\nx\n"}, uid=54321)
    path.chmod(0o700)
    before = unique_ids(hub, "bob")
    metad(hub, "mail", "import", address("bob"), "--from", f"maildir:{path}")
    assert len(unique_ids(hub, "bob")) == len(before) + 1


def test_what_was_left_out_is_printed(hub, tmp_path):
    path = maildir(tmp_path, "ann", {"1.a.host": b"Subject: again\n\nx\n"})
    (path / ".Sent").mkdir()
    done = metad(hub, "mail", "import", address("ann"), "--from", f"maildir:{path}")
    assert "note: " in done.stderr
    assert "1 subfolders not imported: .Sent" in done.stderr
