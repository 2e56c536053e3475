"""metad mail delete, copy, undelete and trace: beside a running hub, and on a stopped one."""

from __future__ import annotations

import json
import os
import re

import pytest

from metad.cli.mail.hub_log import HubLog
from metad.errors import EX_DATAERR, EX_NOUSER, EX_OSERR, EX_TEMPFAIL, EX_USAGE
from metad.store.ids import NO_ID
from tests.support.clients import (
    Pop3Line,
    SmtpLine,
    bodies,
    deliver,
    fetch,
    in_time,
    message,
    unique_ids,
)
from tests.support.commands import metad
from tests.support.hub import Hub, address


class LoggingHub(Hub):
    """It writes its log to its own file, `its_log`, which its user may replace."""

    def __init__(self, mailboxes: list[str]) -> None:
        super().__init__(mailboxes)
        directory = self.home / "logs"
        directory.mkdir()
        directory.chmod(0o777)
        self.its_log = directory / "metad.log"
        self.options = ["--log-file", str(self.its_log)]


def command(hub: Hub, *arguments: str, code: int = 0):
    done = metad(hub, *arguments, check=False)
    assert done.returncode == code, (done.stderr, done.stdout)
    return done


def facts(hub: Hub, *arguments: str, code: int = 0):
    return json.loads(command(hub, *arguments, "--json", code=code).stdout)


def usage(hub: Hub, name: str) -> tuple[int, int]:
    found = facts(hub, "user", "show", address(name))
    return found["messages"], found["bytes"]


def fill(hub: Hub, name: str, count: int) -> list[bytes]:
    made = [message(b"body %d\r\n" % number) for number in range(count)]
    for one in made:
        deliver(hub, one, name)
    return made


@pytest.fixture(params=["running", "stopped"])
def either(request, hub):
    """The hub, running or stopped during the commands, and running again for the checks."""
    if request.param == "running":
        yield hub, lambda: hub
        return
    yield hub, hub.start
    if hub.process is None:
        hub.start()


def down(hub: Hub, request) -> None:
    if request.node.callspec.params["either"] == "stopped":
        hub.stop()


def test_delete_is_what_a_client_would_do(either, mailbox, request):
    hub, again = either
    made = fill(hub, mailbox, 5)
    ids = [one.decode() for one in unique_ids(hub, mailbox)]
    down(hub, request)
    would = facts(hub, "mail", "delete", address(mailbox), "2", "--dry-run")
    assert would == {"deleted": [ids[1]], "missing": []}
    done = facts(hub, "mail", "delete", address(mailbox), "1", "3-4", ids[0])
    assert done == {"deleted": [ids[0], ids[2], ids[3]], "missing": []}
    assert usage(hub, mailbox)[0] == 2
    again()
    assert bodies(hub, mailbox) == [made[1], made[4]]
    assert usage(hub, mailbox) == (2, sum(map(len, fetch(hub, mailbox))))


def test_delete_is_durable(hub, mailbox):
    fill(hub, mailbox, 2)
    command(hub, "mail", "delete", address(mailbox), "1")
    hub.kill()
    hub.start()
    assert len(fetch(hub, mailbox)) == 1


def test_delete_of_a_mailbox_in_use_says_who_has_it(hub, mailbox, monkeypatch):
    monkeypatch.setattr("metad.cli.mail.change.IN_USE_SECONDS", 0.1)
    fill(hub, mailbox, 1)
    with Pop3Line(hub) as pop3:
        pop3.log_in(mailbox)
        done = command(hub, "mail", "delete", address(mailbox), "1", code=EX_TEMPFAIL)
        assert f"metad who --user {address(mailbox)}" in done.stderr
    assert in_time(
        lambda: metad(hub, "mail", "delete", address(mailbox), "1", check=False).returncode == 0
    )
    assert not fetch(hub, mailbox)


def test_delete_waits_for_a_session_that_ends(hub, mailbox):
    fill(hub, mailbox, 1)
    with Pop3Line(hub) as pop3:
        pop3.log_in(mailbox)
    command(hub, "mail", "delete", address(mailbox), "1")
    assert f"deleted by command: user=<{address(mailbox)}>, ids=" in hub.log.read_text()


@pytest.mark.parametrize("which", ["0", "3", "2-1", "1-3", "nonsense", "-1"])
def test_what_is_not_there_is_named_and_nothing_is_deleted(hub, which, shared_two):
    code = EX_USAGE if which == "-1" else EX_DATAERR
    done = command(hub, "mail", "delete", address(shared_two), which, code=code)
    if code == EX_DATAERR:
        assert f"metad mail list {address(shared_two)}" in done.stderr
    assert len(unique_ids(hub, shared_two)) == 2


@pytest.fixture(scope="module")
def shared_two(shared_hub, boxes):
    name = next(boxes)
    fill(shared_hub, name, 2)
    return name


def test_copy_makes_new_messages_with_the_same_content(either, boxes, request):
    hub, again = either
    source, target = next(boxes), next(boxes)
    made = fill(hub, source, 3)
    down(hub, request)
    command(hub, "mail", "copy", address(source), "1", "3", "--to", address(target))
    again()
    assert [one.partition(b"\r\n\r\n")[2] for one in fetch(hub, target)] == [
        made[0].partition(b"\r\n\r\n")[2], made[2].partition(b"\r\n\r\n")[2],
    ]  # fmt: skip
    assert fetch(hub, target)[0].splitlines()[0] == fetch(hub, source)[0].splitlines()[0]
    assert address(target).encode() in fetch(hub, target)[0].splitlines()[1]
    assert not set(unique_ids(hub, source)) & set(unique_ids(hub, target))
    assert usage(hub, target) == (2, sum(map(len, fetch(hub, target))))


def test_copy_keeps_to_the_quota(hub, boxes):
    source, target = next(boxes), next(boxes)
    fill(hub, source, 2)
    command(hub, "user", "set", address(target), "--messages", "1")
    copy = ("mail", "copy", address(source), "1-2", "--to", address(target))
    assert "more than its quota" in command(hub, *copy, code=EX_DATAERR).stderr
    assert not fetch(hub, target)
    command(hub, *copy, "--force")
    assert len(fetch(hub, target)) == 2
    command(
        hub, "mail", "copy", address(source), "1", "--to", address("nobody-here"), code=EX_NOUSER
    )


def test_undelete_brings_back_what_a_client_deleted(either, mailbox, request):
    hub, again = either
    made = fill(hub, mailbox, 3)
    ids = [one.decode() for one in unique_ids(hub, mailbox)]
    with Pop3Line(hub) as pop3:
        pop3.log_in(mailbox)
        pop3.say("DELE 1")
        pop3.say("DELE 2")
        pop3.say("QUIT")
    down(hub, request)
    listed = facts(hub, "mail", "undelete", address(mailbox))
    assert [one["id"] for one in listed] == ids[:2]
    assert {one["by"] for one in listed} == {"session"}
    assert {one["subject"] for one in listed} == {"for a test"}
    assert all(one["deleted"] >= one["received"] for one in listed)
    would = facts(hub, "mail", "undelete", address(mailbox), "--all", "--dry-run")
    assert not any(one["restored"] for one in would)
    done = facts(hub, "mail", "undelete", address(mailbox), ids[1])
    assert [one["restored"] for one in done] == [True]
    again()
    assert [one.split(b"\r\n\r\n")[1] for one in fetch(hub, mailbox)] == [
        made[2].split(b"\r\n\r\n")[1], made[1].split(b"\r\n\r\n")[1],
    ]  # fmt: skip
    assert ids[1].encode() not in unique_ids(hub, mailbox)
    assert usage(hub, mailbox) == (2, sum(map(len, fetch(hub, mailbox))))
    # It is there again, so it is not restored a second time.
    done = facts(hub, "mail", "undelete", address(mailbox), "--all")
    assert [one["id"] for one in done if one["restored"]] == [ids[0]]
    assert len(fetch(hub, mailbox)) == 3
    for what in ("--all", ids[0]):
        done = command(hub, "mail", "undelete", address(mailbox), what)
        assert (done.stdout, done.stderr[:22]) == ("", "nothing to bring back:")


def test_undelete_survives_a_rebuild_of_the_index(hub, mailbox):
    """The deletion record stays valid, and restored messages stay."""
    fill(hub, mailbox, 1)
    command(hub, "mail", "delete", address(mailbox), "1")
    command(hub, "mail", "undelete", address(mailbox), "--all")
    hub.stop()
    command(hub, "store", "rebuild")
    hub.start()
    assert len(fetch(hub, mailbox)) == 1


def test_undelete_of_one_of_two_recipients_leaves_the_other(hub, boxes):
    one, two = next(boxes), next(boxes)
    with SmtpLine(hub) as smtp:
        smtp.deliver(message(), one, two)
    command(hub, "mail", "delete", address(one), "1")
    assert not facts(hub, "mail", "undelete", address(two))
    facts(hub, "mail", "undelete", address(one), "--all")
    assert len(fetch(hub, one)) == len(fetch(hub, two)) == 1


def test_undelete_says_when_the_collector_was_quicker():
    with Hub(["alice"], log_size="1MiB") as hub:
        fill(hub, "alice", 1)
        [name] = [one.decode() for one in unique_ids(hub, "alice")]
        command(hub, "mail", "delete", address("alice"), "1")
        traced = facts(hub, "mail", "trace", name)
        assert not traced[0]["collected"]
        hub.restart()  # seals the logs
        metad(hub, "gc", "--full")
        done = command(hub, "mail", "undelete", address("alice"), name, code=EX_DATAERR)
        assert "metad mail trace" in done.stderr
        assert "no log holds" in command(hub, "mail", "undelete", address("alice")).stderr
        traced = metad(
            hub, "mail", "trace", name, check=False
        )  # its deletion may or may not be left
        assert "collected" in traced.stdout + traced.stderr


def test_undelete_needs_one_of_ids_and_all(hub, mailbox):
    command(hub, "mail", "undelete", address(mailbox), NO_ID.hex(), "--all", code=EX_USAGE)
    command(hub, "mail", "undelete", address(mailbox), NO_ID.hex(), code=EX_DATAERR)
    command(hub, "mail", "undelete", address("nobody-here"), code=EX_NOUSER)


def test_trace_tells_what_became_of_a_message(hub, boxes):
    one, two = next(boxes), next(boxes)
    octets = message()
    with SmtpLine(hub) as smtp:
        name = smtp.deliver(octets, one, two).split()[-1].decode()
    command(hub, "mail", "delete", address(one), "1")
    message_id = re.search(rb"Message-ID: (\S+)", octets)[1].decode()
    for what in (name, message_id, message_id.strip("<>")):
        [found] = facts(hub, "mail", "trace", what)
        assert found["id"] == name
        assert found["from"] == "sender@client.example.test"
        assert found["helo"] == "client.example.test"
        states = {each["address"]: each["state"] for each in found["mailboxes"]}
        assert states == {address(one): "deleted", address(two): "in the mailbox"}
        assert len(found["copies"]) == 1
    text = command(hub, "mail", "trace", name, "--log", str(hub.log)).stdout
    assert f"mailbox:    {address(one)}: deleted 20" in text
    assert f"log:        {re.search(f'.*{name}: client.*', hub.log.read_text())[0][:40]}" in text
    assert max(map(len, [line for line in text.splitlines() if not line.startswith("log:")])) <= 80


def test_trace_finds_the_session_that_deleted_a_message_in_the_hubs_own_log():
    with LoggingHub(["ann"]) as hub:
        with SmtpLine(hub) as smtp:
            name = smtp.deliver(message(), "ann").split()[-1].decode()
        fetch(hub, "ann", delete=True)

        def seen() -> list[str]:
            lines = facts(hub, "mail", "trace", name)[0]["log"]
            return [re.search(r"metad/(\w+)\[", line)[1] for line in lines]

        assert in_time(lambda: seen() == ["smtp", "pop3"]), seen()
        text = command(hub, "mail", "trace", name).stdout
        wanted = rf"^log: .* deleted: client=127\.0\.0\.1, .*user=<{address('ann')}>.*{name}"
        assert re.search(wanted, text, re.MULTILINE)
        # After a rotation the earlier lines are in the file beside it.
        hub.its_log.rename(hub.its_log.with_name("metad.log.1"))
        command(hub, "reload")
        assert hub.its_log.exists()
        assert seen() == ["smtp", "pop3"]
        # A named log replaces the hub's.
        assert facts(hub, "mail", "trace", name, "--log", str(hub.config))[0]["log"] == []
        command(hub, "mail", "trace", name, "--log", "/nowhere", code=EX_OSERR)
        # For a mailbox, no log is read.
        assert len(facts(hub, "mail", "trace", address("ann"))) == 1


def test_trace_finds_in_the_log_what_the_store_does_not_know(tmp_path):
    """A message that was refused, and one that has been collected."""
    with LoggingHub(["ann"]) as hub:
        refused = address("nobody-here")
        with SmtpLine(hub) as smtp:
            smtp.say("MAIL FROM:<sender@client.example.test>")
            smtp.say(f"RCPT TO:<{refused.upper()}>", b"550")

        def lines(what: str, *options: str) -> list[str]:
            done = metad(hub, "mail", "trace", what, "--json", *options, check=False)
            [found] = json.loads(done.stdout) or [{"known": False, "log": []}]
            assert not found["known"]
            return found["log"]

        assert in_time(lambda: bool(lines(refused))), hub.its_log.read_text()
        [line] = lines(refused)
        assert "reject: command=RCPT" in line
        text = command(hub, "mail", "trace", refused).stdout
        assert text.splitlines()[0].startswith("record:     none: it was never stored here")
        assert text.splitlines()[1] == f"log:        {line}"
        old, gone = tmp_path / "old.log", f"{7:032x}"
        old.write_text(
            f"{gone}: client=192.0.2.1, message-id=<Gone@x.example>\n"
            f"deleted: ids={gone}\n"
            '{"event": "stored", "message-id": "gone@x.example"}\n'
            "message-id=<agone@x.example>\n"
        )
        option = ("--log", str(old))
        assert len(lines(gone, *option)) == 2
        assert len(lines("<gone@x.example>", *option)) == 2
        assert len(lines("gone@x.example", *option, "--last", "1")) == 1
        assert lines("x.example", *option) == []
        for nothing in ("", "<>"):
            command(hub, "mail", "trace", nothing, code=EX_USAGE)


def test_trace_asks_the_journal_for_the_unit_of_the_hub(tmp_path, monkeypatch):
    program = tmp_path / "journalctl"
    program.write_text('#!/bin/sh\necho "$@" >"$0.asked"\necho "x abc y"\necho "x def y"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = HubLog(journal=("-u", "metad.service")).about(["abc", "0123"])
    assert found == {"abc": ["x abc y"], "0123": []}
    asked = (tmp_path / "journalctl.asked").read_text()
    assert asked == "--quiet --no-pager -o short-iso -u metad.service -g abc|0123\n"
    (tmp_path / "journalctl.asked").unlink()
    assert HubLog(journal=("-u", "metad.service")).about([]) == {}
    assert not (tmp_path / "journalctl.asked").exists()


def test_trace_of_a_mailbox_lists_what_was_deleted_too(hub, mailbox):
    fill(hub, mailbox, 3)
    command(hub, "mail", "delete", address(mailbox), "2")
    rows = facts(hub, "mail", "trace", address(mailbox))
    assert [one["state"] for one in rows] == ["in the mailbox", "deleted", "in the mailbox"]
    assert len(facts(hub, "mail", "trace", address(mailbox), "--last", "1")) == 1


def test_trace_tells_what_the_collector_deleted():
    with Hub(["alice", "bob"], "[collector]\nidle_seconds = 86400\n") as hub:
        with SmtpLine(hub) as smtp:
            name = smtp.deliver(message(), "alice", "bob").split()[-1].decode()
        command(hub, "user", "remove", address("alice"))
        command(hub, "gc")
        states = [each["state"] for each in facts(hub, "mail", "trace", name)[0]["mailboxes"]]
        assert states == ["in the mailbox", "expired, or its user was removed"]


def test_nothing_is_known_of_what_never_was(hub):
    for what in ("0" * 32, "never@elsewhere.test", "<never@elsewhere.test>"):
        done = command(hub, "mail", "trace", what, code=EX_DATAERR)
        assert "never stored here" in done.stderr
        assert facts(hub, "mail", "trace", what, code=EX_DATAERR) == []
