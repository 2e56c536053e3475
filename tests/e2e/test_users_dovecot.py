"""With Dovecot: it serves the mail stored by `sort`, and its POP clients move to metad without
noticing."""

from __future__ import annotations

import imaplib
import json
import os
import poplib
import pwd
import sys
from pathlib import Path

import pytest

from tests.support.clients import deliver, fetch, message, unique_ids
from tests.support.commands import metad
from tests.support.dovecot import MASTER, MASTER_PASSWORD, PASSWORD, dovecot
from tests.support.hub import USER, Hub, address


def imap_messages(server, user):
    client = imaplib.IMAP4("127.0.0.1", server.imap_port)
    try:
        client.login(user, PASSWORD)
        _, (count,) = client.select("INBOX")
        found = []
        for number in range(1, int(count) + 1):  # type: ignore[arg-type]
            _, data = client.fetch(str(number), "(RFC822.SIZE BODY.PEEK[])")
            size = int(data[0][0].split(b"RFC822.SIZE ")[1].split()[0])
            assert size == len(data[0][1])  # type: ignore[arg-type]
            found.append(data[0][1])
        return found
    finally:
        client.logout()


def test_dovecot_serves_by_imap_at_once_what_sort_puts_down():
    with Hub(["ann", "bob"], layer="sort") as hub:
        location = f"maildir:{hub.data}/maildirs/%d/%n"
        with dovecot(location, "imap") as server:
            assert imap_messages(server, address("ann")) == []
            sent = [message(), message(b""), message(b"." * 3000 + b"\r\n")]
            for one in sent:
                deliver(hub, one, "ann", "bob")
            for name in ("ann", "bob"):
                found = imap_messages(server, address(name))
                assert [one.endswith(b) for one, b in zip(found, sent, strict=True)] == [True] * 3
                assert all(f"Delivered-To: {address(name)}\r\n".encode() in one for one in found)
            assert "corrupt" not in server.log.read_text().lower()


@pytest.fixture
def old_mail(tmp_path_factory):
    """The mail of an old server, with five messages, one of them deleted."""
    with Hub([], settings="") as place:
        root = place.home / "old"
        owner = pwd.getpwnam(USER) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        for part in ("", "cur", "new", "tmp"):
            (root / part).mkdir(exist_ok=True)
            os.chown(root / part, owner.pw_uid, owner.pw_gid)
        for number in range(5):
            path = root / "new" / f"170000000{number}.M1P{number}.old"
            path.write_bytes(b"Subject: %d\n\n.dot\nbody %d\n" % (number, number))
            os.chown(path, owner.pw_uid, owner.pw_gid)
        yield root


def pop_session(server, user, *, delete=()):
    """Unique ids and messages, as a POP client sees them."""
    client = poplib.POP3("127.0.0.1", server.pop3_port)
    client.user(user)
    client.pass_(PASSWORD)
    uids = [line.split()[1] for line in client.uidl()[1]]
    texts = [b"\r\n".join(client.retr(number)[1]) + b"\r\n" for number in range(1, len(uids) + 1)]
    for number in delete:
        client.dele(number)
    client.quit()
    return uids, texts


def test_pop_clients_of_dovecot_move_here_and_download_nothing_again(old_mail):
    with Hub(["ann", "bob", "cid"]) as hub, dovecot(f"maildir:{old_mail}", "pop3") as server:
        pop_session(server, address("ann"), delete=[2])
        uids, texts = pop_session(server, address("ann"))
        assert len(uids) == 4
        host = f"127.0.0.1:{server.pop3_port}"
        by_password = ["--from", f"pop3://{host}", "--password-stdin", "--json"]
        done = metad(hub, "mail", "import", address("ann"), *by_password, given=f"{PASSWORD}\n")
        facts = json.loads(done.stdout)
        assert (facts["imported"], facts["known"], facts["refused"]) == (4, 0, [])
        done = metad(hub, "mail", "import", address("bob"), *by_password, "--master", MASTER,
                     given=f"{MASTER_PASSWORD}\n")  # fmt: skip
        assert json.loads(done.stdout)["imported"] == 4
        done = metad(
            hub, "mail", "import", address("cid"), "--from", f"maildir:{old_mail}", "--json"
        )
        assert json.loads(done.stdout)["imported"] == 4
        for name in ("ann", "bob", "cid"):
            assert unique_ids(hub, name) == uids
            found = fetch(hub, name)
            assert [one.split(b"\r\n", 2)[2] for one in found] == texts
            head = f"Return-Path: <>\r\nDelivered-To: {address(name)}\r\n".encode()
            assert all(one.startswith(head) for one in found)


def test_what_was_exported_is_served_by_dovecot_with_the_same_unique_ids():
    with Hub(["ann"]) as hub:
        for _ in range(3):
            deliver(hub, message(), "ann")
        target = hub.home / "out"
        metad(hub, "mail", "export", address("ann"), "--to", f"maildir:{target}")
        with dovecot(f"maildir:{target}", "pop3") as server:
            uids, texts = pop_session(server, address("ann"))
        assert uids == unique_ids(hub, "ann")
        assert texts == fetch(hub, "ann")


def test_an_installed_dovecot_without_its_imap_package_is_none(monkeypatch):
    """Regression: the IMAP tests failed on a machine with only Dovecot's POP3 package."""
    monkeypatch.setattr("tests.support.dovecot.PROGRAM", Path(sys.executable))
    with (
        pytest.raises(pytest.skip.Exception, match="no Dovecot with NOSUCH"),
        dovecot("", "nosuch"),
    ):
        pass
