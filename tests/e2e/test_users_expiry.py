"""Expiring mail, and mail of removed users, on a running hub."""

from __future__ import annotations

import json
import os
import shutil
import traceback
from collections.abc import Callable, Iterator

import pytest

from metad.cli.context import become_owner
from metad.control_client import request
from metad.users.account import Policy
from metad.users.database import UserDatabase
from tests.support.clients import Pop3Line, bodies, deliver, fetch, in_time, message
from tests.support.hub import Hub, address

# Never automatic: these tests request what they want.
QUIET = "[collector]\nidle_seconds = 86400\n"
SMALL = {"log_size": "1MiB", "workers": 2}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(["ann", "bob", "cid"], QUIET, **SMALL) as made:
        yield made


def as_owner(hub: Hub, work: Callable[[UserDatabase], object]) -> None:
    """Change users in a process of the hub's user."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            become_owner(hub.data)
            with UserDatabase(hub.data / "users") as users:
                work(users)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def expire_within(hub: Hub, name: str, seconds: int) -> None:
    """Less than the command allows."""
    as_owner(hub, lambda users: users.set_policy(address(name), Policy(expiry=seconds)))


def gc(hub: Hub) -> dict[str, int]:
    return json.loads(hub.run("gc", "--json").stdout)


def test_the_clock_is_compared_with_the_mail(hub: Hub) -> None:
    found = json.loads(hub.run("store", "time", "--json").stdout)
    assert not found["suspect"]
    assert abs(found["clock_us"] - found["hub_time_us"]) < 60_000_000
    text = hub.run("store", "time", "--accept").stdout
    assert "mail expires" in text
    assert "yes" in text


def show(hub: Hub, name: str) -> dict:
    return json.loads(hub.run("user", "show", address(name), "--json").stdout)


def holds(hub: Hub, name: str) -> tuple[int, int]:
    """Messages and octets by POP3, which `user show` must tell too."""
    with Pop3Line(hub) as pop:
        pop.log_in(name)
        pop.send(b"STAT\r\n")
        _, messages, octets = pop.line().split()[:3]
        pop.say("QUIT")
    facts = show(hub, name)
    assert (facts["messages"], facts["bytes"]) == (int(messages), int(octets))
    return int(messages), int(octets)


@pytest.mark.long
def test_gc_expires_what_is_too_old_and_says_so(hub: Hub) -> None:
    sent = message()
    for _ in range(3):
        deliver(hub, sent, "ann", "bob")
    before = holds(hub, "bob")
    expire_within(hub, "ann", 1)
    done = [0]

    def gone() -> bool:
        done[0] += gc(hub)["expired"]
        return not holds(hub, "ann")[0]

    assert in_time(gone)
    assert done == [3]
    assert gc(hub)["expired"] == 0
    assert holds(hub, "bob") == before
    assert holds(hub, "ann") == (0, 0)
    text = hub.run("gc").stdout
    assert "messages expired:   0" in text
    assert "orphaned mailboxes: 0" in text
    deliver(hub, sent, "ann")
    hub.kill()
    shutil.rmtree(hub.data / "index")
    hub.start()
    assert holds(hub, "bob") == before
    assert holds(hub, "ann")[0] <= 1
    assert "note" not in hub.run("fsck").stdout


def test_a_quit_that_deletes_what_has_expired_is_ok(hub: Hub) -> None:
    """RFC 1939 section 6 permits an error, but the client has what it wanted."""
    for _ in range(2):
        deliver(hub, message(), "ann")
    with Pop3Line(hub) as pop:
        pop.log_in("ann")
        expire_within(hub, "ann", 1)
        # A mailbox in use is skipped, however old its mail.
        assert in_time(lambda: gc(hub)["in_use"] == 1)
        assert pop.count() == 2
        pop.say("DELE 1")
        pop.say("QUIT")
    assert in_time(lambda: gc(hub)["in_use"] == 0 and holds(hub, "ann") == (0, 0))


def test_a_removed_users_mail_goes_at_the_next_collection(hub: Hub) -> None:
    sent = message()
    deliver(hub, sent, "ann", "bob")
    old = show(hub, "ann")["mailbox"]
    hub.run("user", "remove", address("ann"))
    hub.add("ann")
    assert show(hub, "ann")["mailbox"] > old
    assert bodies(hub, "ann") == []
    assert gc(hub)["expired"] == 1
    assert bodies(hub, "ann") == []
    (kept,) = fetch(hub, "bob")
    assert kept.endswith(sent)
    hub.restart()
    assert (len(bodies(hub, "ann")), len(bodies(hub, "bob"))) == (0, 1)
    assert gc(hub)["expired"] == 0


def test_a_lost_users_database_costs_no_mail_and_gives_none_away(hub: Hub) -> None:
    deliver(hub, message(), "ann", "bob")
    numbers = [show(hub, name)["mailbox"] for name in ("ann", "bob")]
    hub.stop()
    for name in ("users", "numbers"):
        path = hub.data / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused = hub.run("user", "add", address("eve"), "--password-stdin", given="x\n", check=False)
    assert refused.returncode == 65
    assert "start the hub once" in refused.stderr
    hub.start()
    hub.add("eve")
    assert show(hub, "eve")["mailbox"] > max(numbers)
    assert bodies(hub, "eve") == []
    done = gc(hub)
    assert (done["expired"], done["unknown"]) == (0, 2)
    assert "note: users: 2 orphaned mailboxes have mail" in hub.run("fsck").stdout
    assert in_time(lambda: "orphaned mail is kept: " in hub.log.read_text())


def test_capa_and_show_tell_the_expiry(hub: Hub) -> None:
    hub.run("user", "set", address("ann"), "--expiry", "30d")
    with Pop3Line(hub) as pop:
        pop.log_in("ann")
        assert b"\r\nEXPIRE 30\r\n" in pop.listing("CAPA")
        pop.say("QUIT")
    assert show(hub, "ann")["expiry"] == 30 * 86_400
    assert "expiry:            30d\n" in hub.run("user", "show", address("ann")).stdout


def test_a_killed_collector_is_followed_by_one_that_expires(hub: Hub) -> None:
    for _ in range(3):
        deliver(hub, message(), "ann")
    expire_within(hub, "ann", 1)
    pid = request(hub.data, "gc-progress")["pid"]
    os.kill(pid, 9)
    assert in_time(lambda: request(hub.data, "gc-progress").get("pid") not in (None, pid))
    assert in_time(lambda: gc(hub)["expired"] == 3 or holds(hub, "ann") == (0, 0))
    assert holds(hub, "ann") == (0, 0)
