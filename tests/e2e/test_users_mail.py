"""Mail moved in and out: nothing lost, nothing changed, no client downloads it again."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import threading

import pytest

from tests.support.clients import deliver, fetch, message, unique_ids, wait_for_login
from tests.support.commands import metad
from tests.support.hub import PASSWORD, Hub, address

MBOX = b"""\
From ann@client.test Mon Nov 23 12:00:00 2026
Return-Path: <ann@client.test>
Delivered-To: tagged+x@example.test
Subject: one
X-UIDL: known1

>From the start
>>From quoted
.dot

From bob@client.test  Mon Nov 23 12:00:01 2026
Subject: two

bare\rcr and \0 nul, no end"""


@pytest.fixture(scope="module")
def hub():
    with Hub([f"box{number}" for number in range(40)]) as made:
        yield made


@pytest.fixture(scope="module")
def names():
    return iter([f"box{number}" for number in range(40)])


@pytest.fixture
def name(names):
    return next(names)


def import_mail(hub, name, source, *more, check=True, given=""):
    arguments = ["mail", "import", address(name), "--from", str(source), "--json", *more]
    done = metad(hub, *arguments, check=check, given=given)
    return json.loads(done.stdout)


def counts(name, imported, known):
    """What an import without a fault reports."""
    return {
        "address": address(name), "imported": imported, "known": known,
        "refused": [], "notes": [], "error": None,
    }  # fmt: skip


def mbox_of(hub, octets=MBOX):
    path = hub.home / "in.mbox"
    path.write_bytes(octets)
    return f"mbox:{path}"


@contextlib.contextmanager
def stopped(hub):
    hub.stop()
    yield
    hub.start()


def test_an_mbox_comes_in_and_keeps_what_clients_know(hub, name):
    deliver(hub, message(), name)
    assert import_mail(hub, name, mbox_of(hub)) == counts(name, 2, 0)
    _, first, second = fetch(hub, name)
    assert first == (
        b"Return-Path: <ann@client.test>\r\nDelivered-To: tagged+x@example.test\r\n"
        b"Subject: one\r\nX-UIDL: known1\r\n\r\nFrom the start\r\n>From quoted\r\n.dot\r\n"
    )
    assert second == (
        b"Return-Path: <bob@client.test>\r\nDelivered-To: %b\r\nSubject: two\r\n\r\n"
        b"bare\r\ncr and \x80 nul, no end\r\n" % address(name).encode()
    )
    assert unique_ids(hub, name)[1] == b"known1"


def test_importing_again_skips_what_is_here(hub, name):
    import_mail(hub, name, mbox_of(hub))
    before = unique_ids(hub, name)
    assert import_mail(hub, name, mbox_of(hub)) == counts(name, 0, 2)
    twins = MBOX + b"\n\n" + b"From x Mon Nov 23 12:00:01 2026\n\nsame\n\n" * 2
    assert import_mail(hub, name, mbox_of(hub, twins))["imported"] == 2
    assert import_mail(hub, name, mbox_of(hub, twins))["imported"] == 0
    assert unique_ids(hub, name)[:2] == before
    assert len(set(unique_ids(hub, name))) == 4


def test_without_a_hub_one_takes_the_mail_and_goes_again(hub, name):
    with stopped(hub):
        assert import_mail(hub, name, mbox_of(hub))["imported"] == 2
        rows = json.loads(metad(hub, "mail", "list", address(name), "--json").stdout)
        assert rows[0]["uid"] == "known1"
        shown = metad(hub, "mail", "show", address(name), "known1").stdout
        assert "From the start" in shown
    assert unique_ids(hub, name)[0] == b"known1"


def test_after_kill_9_the_hub_that_takes_the_mail_recovers_first(hub, name):
    sent = message()
    deliver(hub, sent, name)
    hub.kill()
    assert import_mail(hub, name, mbox_of(hub))["imported"] == 2
    hub.start()
    assert len(unique_ids(hub, name)) == 3
    assert fetch(hub, name)[0].endswith(sent)


def test_unique_ids_of_another_server_survive_the_loss_of_the_index(hub, name):
    import_mail(hub, name, mbox_of(hub))
    before = unique_ids(hub, name)
    hub.stop()
    for path in (hub.data / "index").iterdir():
        path.unlink()
    hub.start()
    assert unique_ids(hub, name) == before
    assert unique_ids(hub, name) == before


@pytest.mark.parametrize("kind", ["mbox", "maildir"])
def test_what_went_out_comes_in_again_the_same(hub, names, kind):
    one, other = next(names), next(names)
    for body in (b"", b".\r\n..\r\nFrom me\r\n>From you\r\n", b"x" * 5000 + b"\r\n"):
        deliver(hub, message(body), one)
    import_mail(hub, one, mbox_of(hub))
    target = hub.home / f"out-{kind}"
    done = metad(hub, "mail", "export", address(one), "--to", f"{kind}:{target}", "--json")
    assert json.loads(done.stdout) == {"exported": 5, "damaged": []}
    assert import_mail(hub, other, f"{kind}:{target}")["imported"] == 5
    assert fetch(hub, other) == fetch(hub, one)
    if kind == "maildir":
        assert unique_ids(hub, other) == unique_ids(hub, one)
    again = metad(hub, "mail", "export", address(one), "--to", f"{kind}:{target}", check=False)
    assert again.returncode == 73


def test_a_maildir_of_dovecots_comes_in_its_order_with_its_unique_ids(hub, name):
    root = hub.home / "maildir"
    for part in ("cur", "new", "tmp"):
        (root / part).mkdir(parents=True)
    (root / "cur" / "1700000002.M1P1.old:2,S").write_bytes(b"Subject: b\n\nsecond\n")
    (root / "cur" / "1700000001.M1P1.old,S=19:2,").write_bytes(b"Subject: a\r\n\r\nfirst\r\n")
    (root / "new" / "1700000003.M1P1.old").write_bytes(b"Subject: c\n\nthird\n")
    (root / "tmp" / "1700000004.M1P1.old").write_bytes(b"half")
    (root / "dovecot-uidlist").write_text(
        "3 V1275660208 N25 G3085f01b7f11094c501100008c4a11c1\n"
        "7 :1700000002.M1P1.old\n"
        "9 Psaved-uidl W20 :1700000001.M1P1.old,S=19:2,\n"
    )
    assert import_mail(hub, name, f"maildir:{root}")["imported"] == 3
    assert [one.rsplit(b"\r\n", 2)[1] for one in fetch(hub, name)] == [
        b"second",
        b"first",
        b"third",
    ]
    assert unique_ids(hub, name)[:2] == [b"00000007%08x" % 1275660208, b"saved-uidl"]


@pytest.mark.parametrize(
    ("source", "code"),
    [("mbox:/no/such/file", 71), ("maildir:/no/such/directory", 71), ("/tmp", 64),
     ("pop3://user:secret@host", 64), ("imap://host", 64), ("mbox:", 64),
     ("pop3://x@127.0.0.1:1", 69)],
)  # fmt: skip
def test_a_bad_source_is_one_line(hub, name, source, code):
    done = metad(hub, "mail", "import", address(name), "--from", source, "--password-stdin",
                 given="x\n", check=False)  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert "secret" not in done.stderr
    assert unique_ids(hub, name) == []


def test_what_is_no_mbox_is_refused_before_anything_of_it_is_taken(hub, name):
    done = metad(hub, "mail", "import", address(name), "--from", mbox_of(hub, b"no mbox\n"),
                 check=False)  # fmt: skip
    assert done.returncode == 65
    assert "not an mbox file" in done.stderr
    assert unique_ids(hub, name) == []


def test_a_message_that_is_too_large_is_named_and_the_others_taken(hub, name):
    large = b"From a Mon Nov 23 12:00:01 2026\n\n" + b"x" * 3_000_000 + b"\n\n"
    done = metad(hub, "mail", "import", address(name), "--from", mbox_of(hub, large + MBOX),
                 "--json", check=False)  # fmt: skip
    assert done.returncode == 65
    found = json.loads(done.stdout)
    assert found["imported"] == 2
    assert len(found["refused"]) == 1
    assert "in.mbox:1: " in found["refused"][0]


def test_who_is_not_there_has_no_mail(hub):
    for verb in (["list"], ["import", "--from", mbox_of(hub)], ["show", "1"]):
        done = metad(hub, "mail", verb[0], address("nobody"), *verb[1:], check=False)
        assert done.returncode == 67


# --- POP3 -----------------------------------------------------------------------------------------


class OldServer:
    """Another POP3 server, with one mailbox; records what it receives."""

    def __init__(self, *, capabilities=(), uids=("a1", "b2"), sizes=False):
        self.said = []
        self._capabilities = capabilities
        self._uids = uids
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                with client, client.makefile("rwb") as stream:
                    self._session(stream)

    def _session(self, stream):
        def write(*lines):
            stream.write(b"".join(line + b"\r\n" for line in lines))
            stream.flush()

        write(b"+OK old server")
        for line in stream:
            self.said.append(line.rstrip(b"\r\n"))
            verb = line.split()[0].upper()
            if verb == b"CAPA":
                write(b"+OK", *self._capabilities, b".")
            elif verb == b"STAT":
                write(f"+OK {len(self._uids)} 1000".encode())
            elif verb == b"UIDL":
                write(b"+OK", *(f"{n} {uid}".encode() for n, uid in enumerate(self._uids, 1)), b".")
            elif verb == b"RETR":
                number = line.split()[1]
                write(b"+OK", b"Subject: " + number, b"", b"..dot", b"body " + number, b".")
            elif self.said[-1] == b"PASS wrong":
                write(b"-ERR [AUTH] no")
            else:
                write(b"+OK")
            if verb == b"QUIT":
                return

    def close(self):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture
def old():
    server = OldServer()
    yield server
    server.close()


def test_a_pop3_mailbox_comes_in_with_its_unique_ids_and_nothing_is_deleted(hub, name, old):
    source = f"pop3://old%40name@127.0.0.1:{old.port}"
    arguments = (source, "--password-stdin")
    assert import_mail(hub, name, *arguments, given="secret\n")["imported"] == 2
    assert old.said[1:3] == [b"USER old@name", b"PASS secret"]
    assert not any(line.startswith(b"DELE") for line in old.said)
    assert unique_ids(hub, name) == [b"a1", b"b2"]
    assert fetch(hub, name)[0].endswith(b"Subject: 1\r\n\r\n.dot\r\nbody 1\r\n")
    assert import_mail(hub, name, *arguments, given="secret\n") == counts(name, 0, 2)


def test_a_master_user_logs_in_for_everybody(hub, name, old):
    source = f"pop3://127.0.0.1:{old.port}"
    import_mail(hub, name, source, "--master", "root", "--password-stdin", given="pw\n")
    (line,) = [one for one in old.said if one.startswith(b"AUTH PLAIN ")]
    assert base64.b64decode(line.split()[2]) == f"{address(name)}\0root\0pw".encode()


def test_a_wrong_password_is_the_servers_word_and_nothing_else(hub, name, old):
    done = metad(hub, "mail", "import", address(name), "--from", f"pop3://127.0.0.1:{old.port}",
                 "--password-stdin", given="wrong\n", check=False)  # fmt: skip
    assert done.returncode == 76
    assert "[AUTH] no" in done.stderr
    assert "wrong" not in done.stderr


def test_from_hub_to_hub_no_client_downloads_anything_again(hub, name):
    with Hub(["there"]) as other:
        for _ in range(3):
            deliver(other, message(), "there")
        source = f"pop3://{address('there').replace('@', '%40')}@127.0.0.1:{other.pop3_port}"
        done = import_mail(hub, name, source, "--password-stdin", given=f"{PASSWORD}\n")
        assert done["imported"] == 3
        assert unique_ids(hub, name) == unique_ids(other, "there")
        assert fetch(hub, name) == fetch(other, "there")


# --- The import socket ----------------------------------------------------------------------------


def import_socket(hub):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(str(hub.data / "run" / "import-0"))
    return sock


@pytest.mark.parametrize(
    "said",
    [b"\n", b"nonsense\n", b"{}\n", b"[]\n", b"x" * 9000,
     b'{"mailbox":2,"address":"a@b","sender":"","uid":"","time_us":0,"size":99999999999}\n',
     b'{"mailbox":2,"address":"a\\r\\nb@b","sender":"","uid":"","time_us":0,"size":3}\n.\r\n',
     b'{"mailbox":2,"address":"a@b","sender":"","uid":"a b","time_us":0,"size":3}\n.\r\n',
     b'{"mailbox":true,"address":"a@b","sender":"","uid":"","time_us":0,"size":3}\n.\r\n',
     b'{"mailbox":99999,"address":"a@b","sender":"","uid":"","time_us":0,"size":3}\n.\r\n',
     b'{"mailbox":2,"address":"a@b","sender":"","uid":"","time_us":0,"size":8}\n.\r\nx\r\n.\r\n',
     b'{"mailbox":2,"address":"a@b","sender":"","uid":"","time_us":0,"size":5}\nx\n.\r\n',
     b'{"mailbox":2,"address":"a@b","sender":"","uid":"","time_us":0,"size":6}\n.\rx.\r\n'],
)  # fmt: skip
def test_the_import_socket_takes_nothing_that_is_not_one_message(hub, said):
    if os.geteuid() and os.geteuid() != (hub.data / "run").stat().st_uid:
        pytest.skip("only the owner of the hub and root get in")
    with import_socket(hub) as sock:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: sock.recv(4096), b""))
    assert "error" in json.loads(answer.partition(b"\n")[0])
    wait_for_login(hub, "box0")  # the previous session may just be ending
    assert unique_ids(hub, "box0") is not None
    assert (hub.data / "run" / "import-0").stat().st_mode & 0o077 == 0
