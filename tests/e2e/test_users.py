"""Users over the wire: aliases, quotas, passwords, delays, and changes by an administrator."""

from __future__ import annotations

import json
import re
import shutil
import time

import pytest

from tests.support.clients import (
    SENDER,
    Pop3Line,
    SmtpLine,
    bodies,
    deliver,
    fetch,
    message,
    stuffed,
    unique_ids,
)
from tests.support.commands import metad
from tests.support.hub import DEADLINE, PASSWORD, Hub, address

SETTINGS = """
[quota]
size = 0
[[domain]]
name = "small.test"
quota = 4000
messages = 3
"""


@pytest.fixture(scope="module")
def hub():
    with Hub(["ann", "bob", "cid", "dan", "eve", "fay", "gus"], settings=SETTINGS) as made:
        yield made


def user(hub, *arguments, given=""):
    return metad(hub, "user", *arguments, given=given)


def rcpt(hub, *addresses, size=None):
    """The replies to RCPT of each, in one transaction."""
    with SmtpLine(hub) as smtp:
        smtp.say(f"MAIL FROM:<{SENDER}> SMTPUTF8" + (f" SIZE={size}" if size else ""))
        return [say(smtp, f"RCPT TO:<{one}>") for one in addresses]


def say(line, command):
    line.send(command.encode() + b"\r\n")
    return line.line().decode()


def send(hub, octets, *addresses):
    """The reply to the end of one message."""
    with SmtpLine(hub) as smtp:
        smtp.say(f"MAIL FROM:<{SENDER}>")
        for one in addresses:
            smtp.say(f"RCPT TO:<{one}>")
        smtp.say("DATA", b"354")
        smtp.send(stuffed(octets))
        return smtp.line().decode()


# --- Addresses ------------------------------------------------------------------------------------


def test_an_alias_is_one_copy_for_each_and_one_entry_for_who_is_named_twice(hub):
    user(hub, "alias", address("both"), address("ann"), address("bob"))
    sent = message()
    assert send(hub, sent, address("both"), address("ann")).startswith("250")
    (anns,) = fetch(hub, "ann", delete=True)
    (bobs,) = fetch(hub, "bob", delete=True)
    assert anns.endswith(sent)
    assert bobs.endswith(sent)
    # As it was given in RCPT, the first one.
    assert b"Delivered-To: both@example.test\r\n" in anns


def test_an_alias_with_a_disabled_member_is_refused_whole(hub):
    user(hub, "alias", address("team"), address("ann"), address("cid"))
    user(hub, "set", address("cid"), "--disable")
    replies = rcpt(hub, address("team"), address("ann"), address("cid"))
    assert [reply[:9] for reply in replies] == ["550 5.2.1", "250 2.1.5", "550 5.2.1"]
    user(hub, "set", address("cid"), "--enable")
    assert rcpt(hub, address("team"))[0].startswith("250")


def test_a_catch_all_and_an_idna_domain_work_at_once_on_a_running_hub(hub):
    assert rcpt(hub, "x@bücher.test", "x@xn--bcher-kva.test")[0].startswith("550 5.7.1")
    user(hub, "alias", "@bücher.test", address("dan"))
    for one in ("any@bücher.test", "any@BÜCHER.test", "any@xn--bcher-kva.test"):
        assert rcpt(hub, one)[0].startswith("250")
    user(hub, "alias", "@bücher.test", "--delete")
    assert rcpt(hub, "x@xn--bcher-kva.test")[0].startswith("550 5.7.1")


def test_whom_an_alias_names_is_not_removed_unless_by_force(hub):
    user(hub, "add", address("leaver"), "--no-password")
    user(hub, "alias", address("l"), address("leaver"))
    refused = metad(hub, "user", "remove", address("leaver"), check=False)
    assert refused.returncode == 65
    assert "named by the aliases l@example.test" in refused.stderr
    user(hub, "remove", address("leaver"), "--force")
    assert [reply[:3] for reply in rcpt(hub, address("leaver"), address("l"))] == ["550", "550"]


# --- Quotas ---------------------------------------------------------------------------------------


def wait_until_usage_counts_it(hub, one):
    """A quota does not count mail that another worker acknowledged in the last milliseconds.  A
    login waits until the index has all acknowledged mail."""
    with Pop3Line(hub) as pop:
        pop.say(f"USER {one}")
        pop.say(f"PASS {PASSWORD}")
        pop.say("QUIT")


def test_quota_is_decided_at_rcpt_by_usage_and_size(hub):
    user(hub, "add", "q@small.test", "--password-stdin", given=f"{PASSWORD}\n")
    assert rcpt(hub, "q@small.test", size=4001)[0].startswith("552 5.2.2")
    assert rcpt(hub, "q@small.test", size=3000)[0].startswith("250")
    assert send(hub, message(b"x" * 500 + b"\r\n"), "q@small.test").startswith("250")
    wait_until_usage_counts_it(hub, "q@small.test")
    assert rcpt(hub, "q@small.test", size=3500)[0].startswith("452 4.2.2")
    assert rcpt(hub, "q@small.test", size=1000)[0].startswith("250")


def test_a_message_that_turns_out_too_large_is_refused_only_if_no_recipient_has_room(hub):
    user(hub, "add", "p@small.test", "--password-stdin", given=f"{PASSWORD}\n")
    large = message((b"y" * 70 + b"\r\n") * 100)
    assert send(hub, large, "p@small.test").startswith("552 5.2.2")
    assert send(hub, large, "p@small.test", address("eve")).startswith("250")
    assert bodies(hub, "eve") == [large]
    wait_until_usage_counts_it(hub, "p@small.test")
    facts = json.loads(user(hub, "show", "p@small.test", "--json").stdout)
    assert (facts["messages"], facts["quota"]) == (1, 4000)
    assert facts["bytes"] > len(large)
    assert rcpt(hub, "p@small.test")[0].startswith("452 4.2.2")


def test_the_number_of_messages_is_a_quota_too_and_deleting_makes_room(hub):
    user(hub, "add", "n@small.test", "--password-stdin", given=f"{PASSWORD}\n")
    for _ in range(3):
        assert send(hub, message(b""), "n@small.test").startswith("250")
    wait_until_usage_counts_it(hub, "n@small.test")
    assert rcpt(hub, "n@small.test")[0].startswith("452 4.2.2")
    with Pop3Line(hub) as pop:
        pop.say("USER n@small.test")
        pop.say(f"PASS {PASSWORD}")
        pop.say("DELE 1")
        pop.say("QUIT")
    assert rcpt(hub, "n@small.test")[0].startswith("250")
    user(hub, "set", "n@small.test", "--messages", "none", "--quota", "1MiB")
    assert rcpt(hub, "n@small.test", size=900_000)[0].startswith("250")


# --- Logging in -----------------------------------------------------------------------------------


def crypt(password: bytes, setting: bytes) -> str:
    from metad.users import hashes

    return hashes._crypt(password, setting).decode()


def log_in(hub, name, password, *, workers=1):
    """The answers on several connections, which the kernel distributes over the workers."""
    answers = []
    for _ in range(workers):
        with Pop3Line(hub) as pop:
            pop.say(f"USER {address(name)}")
            pop.send(f"PASS {password}\r\n".encode())
            answers.append(pop.line()[:3])
            if answers[-1] == b"+OK":
                pop.say("QUIT")
    return answers


def test_a_new_password_ends_the_old_one_at_once_in_every_worker(hub):
    assert log_in(hub, "fay", PASSWORD, workers=12) == [b"+OK"] * 12
    user(hub, "passwd", address("fay"), "--password-stdin", given="another\n")
    assert log_in(hub, "fay", "another", workers=12) == [b"+OK"] * 12
    assert log_in(hub, "fay", PASSWORD) == [b"-ER"]


def test_a_user_with_an_imported_hash_logs_in_and_then_has_scram_keys(hub, tmp_path):
    file = hub.home / "users.csv"
    hashed = crypt(b"imported", b"$6$rounds=1000$saltsalt$")
    file.write_text(f"address,hash\nimp@example.test,{hashed}\nbad line\n")
    done = metad(hub, "user", "import", str(file), "--format", "csv", check=False)
    assert done.returncode == 65
    assert f"{file}:3: " in done.stderr
    assert "added 1, changed 0, unchanged 0, removed 0, bad 1" in done.stdout
    with Pop3Line(hub) as pop:
        assert b"SCRAM" not in pop.listing("CAPA")
    assert log_in(hub, "imp", "imported") == [b"+OK"]
    facts = json.loads(user(hub, "show", address("imp"), "--json").stdout)
    assert facts["password"] == "sha512-crypt, SCRAM-SHA-256"
    deadline = time.monotonic() + DEADLINE  # workers check now and then
    while True:
        with Pop3Line(hub) as pop:
            if b"SASL SCRAM-SHA-256 PLAIN" in pop.listing("CAPA"):
                break
        assert time.monotonic() < deadline


def test_a_login_delay_is_told_after_a_right_password_and_only_then(hub):
    user(hub, "set", address("gus"), "--login-delay", "1h")
    assert log_in(hub, "gus", PASSWORD) == [b"+OK"]
    for _ in range(4):
        with Pop3Line(hub) as pop:
            pop.log_in("gus", answer=b"-ERR [LOGIN-DELAY]")
    with Pop3Line(hub) as pop:
        pop.log_in("gus", "wrong", answer=b"-ERR [AUTH]")
    facts = json.loads(user(hub, "show", address("gus"), "--json").stdout)
    assert abs(facts["last_login"] - time.time()) < 120
    user(hub, "set", address("gus"), "--login-delay", "default")
    assert log_in(hub, "gus", PASSWORD) == [b"+OK"]


def test_the_expiry_of_a_user_is_in_its_capabilities(hub):
    user(hub, "set", address("bob"), "--expiry", "30d")
    with Pop3Line(hub) as pop:
        pop.log_in("bob")
        assert b"EXPIRE 30\r\n" in pop.listing("CAPA")
    with Pop3Line(hub) as pop:
        pop.log_in("cid")
        assert b"EXPIRE NEVER\r\n" in pop.listing("CAPA")


# --- Coming and going -----------------------------------------------------------------------------


def test_a_removed_user_that_comes_again_has_no_old_mail(hub):
    user(hub, "add", address("again"), "--password-stdin", given=f"{PASSWORD}\n")
    deliver(hub, message(), "again")
    user(hub, "remove", address("again"))
    assert rcpt(hub, address("again"))[0].startswith("550")
    user(hub, "add", address("again"), "--password-stdin", given=f"{PASSWORD}\n")
    assert unique_ids(hub, "again") == []


def test_usage_is_the_same_after_a_restart_and_a_rebuild(hub):
    for size in (10, 3000):
        deliver(hub, message(b"z" * size + b"\r\n"), "dan")
    before = json.loads(user(hub, "show", address("dan"), "--json").stdout)
    assert before["messages"] == 2
    with Pop3Line(hub) as pop:
        pop.log_in("dan")
        assert int(pop.say("STAT").split()[2]) == before["bytes"]
    hub.stop()
    stopped = json.loads(user(hub, "show", address("dan"), "--json").stdout)
    shutil.rmtree(hub.data / "index")
    unknown = json.loads(user(hub, "show", address("dan"), "--json").stdout)
    hub.start()
    after = json.loads(user(hub, "show", address("dan"), "--json").stdout)
    for facts in (stopped, after):
        assert (facts["bytes"], facts["messages"]) == (before["bytes"], before["messages"])
    assert unknown["bytes"] is None


def test_an_export_makes_the_same_users_elsewhere(hub, tmp_path):
    exported = user(hub, "export").stdout
    assert re.search(r"(?m)^both@example.test,.*,ann@example.test bob@example.test$", exported)
    file = hub.home / "export.csv"
    file.write_text(exported)
    with Hub([]) as other:
        other_done = metad(other, "user", "import", str(file), "--format", "csv", "--sync")
        assert ", bad 0" in other_done.stdout
        assert metad(other, "user", "export").stdout == exported
        assert log_in(other, "ann", PASSWORD) == [b"+OK"]


def test_no_secret_is_in_the_log_or_on_a_command_line(hub):
    log = hub.log.read_text()
    for secret in (PASSWORD, "another", "imported", "$6$"):
        assert f" {secret}" not in log
    assert "wrong" not in log.replace("reason=wrong password", "")


def lost_users(hub):
    """The state of the hub, and its problem with the users database."""
    facts = json.loads(metad(hub, "status", "--json").stdout)
    (problem,) = [one for one in facts["problems"] if "users database" in one["problem"]]
    return facts["state"], problem


@pytest.mark.long
def test_a_lost_users_database_defers_mail_until_someone_accepts_the_loss():
    """Regression: all mail was refused with 550, and its senders gave up."""
    with Hub(["ann", "bob"]) as hub:
        sent = message()
        deliver(hub, sent, "ann")
        hub.stop()
        shutil.rmtree(hub.data / "users")
        hub.start()
        assert "the users database was missing" in hub.log.read_text()
        assert [one[:9] for one in rcpt(hub, address("ann"), "x@other.test")] == ["451 4.3.0"] * 2
        state, problem = lost_users(hub)
        assert (state, problem["remedy"].split(": ")[1]) == ("refusing", "metad user accept-loss")
        assert time.time() - 60 < problem["since"] <= time.time()
        check = metad(hub, "status", "--check", check=False)
        assert (check.returncode, "the users database was lost" in check.stdout) == (2, True)
        user(hub, "add", address("bob"), "--password-stdin", given=PASSWORD + "\n")
        assert rcpt(hub, address("bob"))[0].startswith("250")
        assert rcpt(hub, "postmaster")[0].startswith("250")
        hub.stop()
        hub.start()
        assert rcpt(hub, address("ann"))[0].startswith("451 4.3.0")
        assert user(hub, "accept-loss").stdout == "accepted\n"
        assert rcpt(hub, address("ann"))[0].startswith("550 5.1.1")
        deadline = time.monotonic() + DEADLINE
        while metad(
            hub, "status", "--check", check=False
        ).returncode:  # workers check once a second
            assert time.monotonic() < deadline
        assert user(hub, "accept-loss").stdout == "nothing was lost\n"
        hub.stop()
        hub.start()
        assert rcpt(hub, "x@other.test")[0].startswith("550 5.7.1")
